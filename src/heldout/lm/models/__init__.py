"""What answers? Language models: local, behind an endpoint, tiny, scripted, and their answers kept."""
