"""What does a text show? Points for what was asked for."""
