"""Where in the network is the answer computed? Probes into any transformers decoder, which leave it as it was."""
