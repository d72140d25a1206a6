"""Which examples should count? Weights of training examples that are learnt beside the network."""
