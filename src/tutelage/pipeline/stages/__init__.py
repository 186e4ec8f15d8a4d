"""The stages of a run, one module each; `pipeline.run.distill` calls them in order."""
