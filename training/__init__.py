"""One training run: the step, its state, its epochs, its checkpoints and its records."""
