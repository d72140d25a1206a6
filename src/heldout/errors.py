"""What is told to a user in one line: what was wrong, and what to do."""

from __future__ import annotations


class ProblemError(ValueError):
    """The user's file cannot be worked on; the message says what is wrong and where."""
