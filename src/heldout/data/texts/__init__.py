"""What texts are written to train a language model?"""
