"""Algorithms on sequences of tokens, at any length."""
