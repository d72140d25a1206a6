"""Built-in problems for ``heldout improve NAME``; each is a file as a user would write it."""
