"""Which characters are there, drawn by whom, and which of them come when?"""
