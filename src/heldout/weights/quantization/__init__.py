"""What becomes of a model in few bits?"""
