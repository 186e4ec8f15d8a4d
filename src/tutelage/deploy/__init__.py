"""From a trained student to checked files, and the predictor that runs them. Imports no torch by itself."""
