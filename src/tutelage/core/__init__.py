"""Recipes, run directories, files, progress and the runtime: what every other folder stands on."""
