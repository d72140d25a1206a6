"""Another model teaches: its outputs, and what it computes on the way to them."""
