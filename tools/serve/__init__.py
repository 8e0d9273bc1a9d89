"""Serve checkpoints and exported folders over HTTP, with a page to try them."""
