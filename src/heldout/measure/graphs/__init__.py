"""What do frozen embeddings of the nodes of a graph serve for?"""
