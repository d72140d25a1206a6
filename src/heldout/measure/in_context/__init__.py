"""What does a sequence model do in context? Its outputs beside those of ideal predictors."""
