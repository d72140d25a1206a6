"""What does the command line say? Parses, calls, prints."""

from heldout.cli.app import app, main

__all__ = ["app", "main"]
