"""What a population teaches: candidates are trained, the best are kept, and what they share makes the next ones."""
