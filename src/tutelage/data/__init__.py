"""Data: sources of images, splits into subsets, augmented views, and the loaders that batch them."""
