"""Which experts does a sample pass through? Pathways through a mixture of experts, compared."""
