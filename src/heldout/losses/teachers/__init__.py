"""Losses against what another model answers, beside the labels."""
