"""Calls for the battery of bad input, where no example of a docstring can make them: room -> name -> what to do."""
