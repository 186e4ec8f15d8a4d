"""The teacher's outputs on disk: the layout of a row, the cache, and how it is filled."""
