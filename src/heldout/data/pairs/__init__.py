"""Which pairs of token sequences does a model learn from?"""
