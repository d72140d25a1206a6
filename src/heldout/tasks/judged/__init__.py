"""Which pictures are alike, and who says so? Worlds with judges who find the odd one of three."""
