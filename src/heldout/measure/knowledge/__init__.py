"""Knowledge graphs: where a true triple stands among all candidates, and what vectors of entities tell."""
