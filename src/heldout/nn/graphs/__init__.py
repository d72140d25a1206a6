"""What a model over a small graph is: the graph, the programs that write it, the readout that it shapes."""
