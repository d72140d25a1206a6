"""Which worlds does an agent act in?"""
