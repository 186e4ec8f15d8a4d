"""Teachers and students: loading, heads, weights, and what is done to a network."""
