"""A network seen from outside: its graph of primitive operations, and the parts of what predicts from that graph."""
