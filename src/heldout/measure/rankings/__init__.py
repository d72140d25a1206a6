"""Do two tables of scores rank models the same way?"""
