"""Pictures in which things are to be found by what a text says of them."""
