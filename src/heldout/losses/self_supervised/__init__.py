"""What is minimised without labels: views compared with each other, inputs reconstructed."""
