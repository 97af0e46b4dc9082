"""Studies: a recipe over a grid of changes, each cell a run of its own process, resumable."""
