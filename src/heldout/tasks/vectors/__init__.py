"""Which worlds are made of numbers: points, clusters, residues, linear cues?"""
