"""What does the command line say? Parses, calls, prints."""

from heldout.cli.verbs import app, main

__all__ = ["app", "main"]
