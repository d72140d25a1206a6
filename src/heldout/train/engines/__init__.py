"""How does a Method run in somebody else's engine?"""
