"""Which networks read one sequence of tokens and write another?"""
