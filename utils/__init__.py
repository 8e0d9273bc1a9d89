"""What every room uses and that uses none of them: errors, files, the run's records, checkpoints, metrics."""
