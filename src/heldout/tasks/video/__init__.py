"""Which worlds move?"""
