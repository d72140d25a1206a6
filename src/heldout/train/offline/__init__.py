"""Training on logged behaviour, without an environment."""
