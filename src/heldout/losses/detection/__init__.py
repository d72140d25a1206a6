"""What does a detector minimise?"""
