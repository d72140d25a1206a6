"""Which worlds are scenes of shapes, about which one asks?"""
