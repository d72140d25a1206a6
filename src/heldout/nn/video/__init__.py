"""Which networks see clips: pseudo-3-D residual blocks, and networks for pictures made into networks for video."""
