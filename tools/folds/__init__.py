"""Cross-validation from the folds to the ensemble: see command.py."""
