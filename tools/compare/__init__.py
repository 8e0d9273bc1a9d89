"""Compare runs by their records in logs/: a table on the terminal, and a page with their curves."""
