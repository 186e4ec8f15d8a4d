"""The stations of a run, one module each; `tutelage.distill` calls them in order."""
