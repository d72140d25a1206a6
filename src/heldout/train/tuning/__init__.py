"""What do texts and preferences teach? The tuning of language models, on trl."""
