"""Which architecture? Spaces in which a network is found by gradient descent, and what is built of what was found."""
