"""Which networks read a sentence as a tree?"""
