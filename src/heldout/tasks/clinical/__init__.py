"""Which patients? Worlds of medicine, drawn from a formula: no record of any person is in them."""
