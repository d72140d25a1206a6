"""How does a graph network learn with few edges and few weights?"""
