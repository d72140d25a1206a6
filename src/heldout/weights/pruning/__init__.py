"""What becomes of a model without some of its weights?"""
