"""The teacher, the losses, the training loop and the selection of the student."""
