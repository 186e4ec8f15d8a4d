"""How good, how fast and how large a model is, and whether a difference is more than chance."""
