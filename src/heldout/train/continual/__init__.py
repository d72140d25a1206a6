"""How does a model learn task after task? Strategies that keep what was learnt, and the loop around them."""
