"""How wrong is a model where nobody has labels? Estimates of its error, and scores that rank data by it."""
