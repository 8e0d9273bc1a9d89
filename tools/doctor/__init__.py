"""Checks the lists and their images: `python -m tools.doctor train.txt val.txt`."""
