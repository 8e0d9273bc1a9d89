"""Weights of other programs for our networks: which layout a file has is told by its names, and all of it must fit."""

from network.layouts.fit import Adapted, adapt

__all__ = ["Adapted", "adapt"]
