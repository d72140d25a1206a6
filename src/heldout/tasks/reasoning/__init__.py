"""Which worlds are made of questions that take several steps?"""
