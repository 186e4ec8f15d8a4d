"""How the files of each format are made from a PyTorch module."""
