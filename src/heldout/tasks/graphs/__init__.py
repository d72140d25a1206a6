"""Graphs: what measured architectures reach on graph data sets."""
