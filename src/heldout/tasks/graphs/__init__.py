"""Graphs: communities with features, what may shift between graphs, and what measured architectures reach."""
