"""Helpers beside the four scripts: `python -m tools.<name>`."""
