"""What an exported folder holds of code, as files that are copied: they import nothing of this project."""
