"""``python -m heldout.cli``."""

from heldout.cli import main

main()
