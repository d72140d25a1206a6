"""Which language comes with an interpreter?"""
