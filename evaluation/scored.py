"""Predictions together with what names them."""

from typing import NamedTuple

from dataloader.file_list import FileList
from evaluation.metrics import Predictions
from utils.classes import Classes


class Scored(NamedTuple):
    """Predictions, with the list of their images and their classes."""

    predictions: Predictions
    files: FileList
    classes: Classes
