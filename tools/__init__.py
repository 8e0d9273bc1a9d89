"""Tools that a person runs beside the four scripts: `python -m tools.<name>`."""
