"""Makes lists out of folders, tables and other data sets: `python datasets/prepare.py --help`."""
