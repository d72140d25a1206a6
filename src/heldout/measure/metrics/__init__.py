"""What do predictions tell? Scores of outputs, answers and costs."""
