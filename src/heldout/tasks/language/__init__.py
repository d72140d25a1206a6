"""Which worlds are made of texts, code and instructions?"""
