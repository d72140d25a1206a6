"""How well are the boxes found?"""
