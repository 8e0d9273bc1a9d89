"""Which backbone suits a data set, before any is trained: see command.py."""
