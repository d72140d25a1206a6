"""Logged behaviour: what an agent observed, did and was rewarded for."""
