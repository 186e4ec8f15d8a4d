"""Teachers and students: loading, heads, saved weights, and changes to networks."""
