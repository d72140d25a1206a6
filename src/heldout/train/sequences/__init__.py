"""What teaches a network to write a sequence for a sequence?"""
