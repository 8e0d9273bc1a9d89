"""How results name the networks that made them: the title of a page, and the folder below --tag."""

import argparse
import os
import re
from pathlib import Path

from inference import saved_probs
from inference.members import LoadedNetwork

# of a folder for results; a file system takes 255 bytes, and a temporary folder has a longer name
MAX_NAME_LETTERS, MAX_NAME_BYTES = 100, 150
MAX_TAG_LETTERS, MAX_EPOCH_LETTERS = 60, 20  # in that name


def title_of(networks: list[LoadedNetwork], saved: list[saved_probs.SavedProbs]) -> str:
    """Return the networks with their epochs, and the files of probabilities, for people."""
    names = [f"{network.member.model.name}, epoch {network.epoch} of {network.tag}" for network in networks]
    return " + ".join(names + [Path(one.path).name for one in saved])


def folder_name(opt: argparse.Namespace, networks: list[LoadedNetwork], saved: list[str]) -> str:
    """Return the name of the folder for the results, below --tag.

    It has the epochs, and for checkpoints of another tag their tags and the views too. A few batches (--debug) get a
    folder of their own: they must not replace the results of the whole list.

    Args:
        saved: the names of the files of probabilities.
    """
    tags = [re.sub(r"[^\w.+-]", "_", network.tag).lstrip(".")[:MAX_TAG_LETTERS] or "_" for network in networks]
    epochs = [re.sub(r"[^\w-]", "_", network.epoch)[:MAX_EPOCH_LETTERS] for network in networks]
    debug = "_debug" if opt.debug else ""
    if all(network.tag == opt.tag for network in networks):
        return _cut("+".join(epochs + saved), MAX_NAME_LETTERS - len(debug)) + debug
    if len(set(tags)) == 1:
        parts = [f"{tags[0]}_{'+'.join(epochs)}"]
    else:
        parts = [f"{tag}_{epoch}" for tag, epoch in zip(tags, epochs, strict=True)]
    end = (f"_{opt.tta}" if opt.tta != "none" else "") + debug
    return _cut("+".join(parts + saved), MAX_NAME_LETTERS - len(end)) + end


def _cut(name: str, letters: int) -> str:
    """Return the name cut to `letters`, and to MAX_NAME_BYTES: a Chinese letter takes three bytes."""
    return os.fsencode(name[:letters])[:MAX_NAME_BYTES].decode(errors="ignore")
