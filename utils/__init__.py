"""What every program needs and no room owns: errors, files, logging, locks, the checkpoint format."""
