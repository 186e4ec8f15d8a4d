"""Distil a big image classifier into the best small one, and prove it. Import the submodules you need."""
