"""Which edges of a graph does a model see?"""
