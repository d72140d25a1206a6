"""Knowledge graphs: what scores a triple, what reads the description of an entity."""
