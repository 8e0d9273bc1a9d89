"""The accuracy that our training reaches in a given time, beside that of other trainers."""
