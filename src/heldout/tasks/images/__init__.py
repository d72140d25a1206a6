"""Which worlds are made of pictures?"""
