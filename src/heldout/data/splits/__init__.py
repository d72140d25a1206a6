"""Which part of the data is held out, so that its parts are known and their composition is not?"""
