"""The cache of the teacher's outputs on disk: the layout of its rows, its files, and how it is filled."""
