"""Texts of several domains: what specialising in one of them costs in the others."""
