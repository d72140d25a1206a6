"""Which examples does a model see, and when?"""
