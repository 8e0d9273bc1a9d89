"""Pictures of a run: what it learnt, what it confuses, what it was shown."""
