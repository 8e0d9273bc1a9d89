"""Export a checkpoint, or an ensemble, as a folder that predicts without this project and without torch."""
