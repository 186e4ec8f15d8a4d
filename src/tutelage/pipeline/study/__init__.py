"""Studies: many runs of variants of one recipe, ranked together."""
