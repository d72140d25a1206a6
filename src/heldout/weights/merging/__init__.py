"""What becomes of several trained models? One."""
