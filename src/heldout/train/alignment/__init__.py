"""What teaches a model to judge as people do? Likenesses of things, and who finds which the odd one out."""
