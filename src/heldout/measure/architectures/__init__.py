"""How good will an architecture be? Asked before it is trained."""
