"""Which blocks bring two streams of tokens together?"""
