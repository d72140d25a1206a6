"""What happens over training? A run's course in, a finding out."""
