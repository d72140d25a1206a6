"""What does a model learn beside examples that are like the one it sees?"""
