"""Which network finds what a text asks for, and where its boxes lie?"""
