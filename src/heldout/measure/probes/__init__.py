"""What does a model do inside, and under questions? A model in, a finding out."""
