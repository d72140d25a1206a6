"""Which way does each example push? Gradients by example, their projections, what they agree on and what they weigh."""
