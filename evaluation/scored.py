"""Predictions together with what names them."""

from typing import NamedTuple

from dataloader.file_list import FileList
from evaluation.metrics import Predictions
from evaluation.targets import TargetPredictions
from utils.classes import Classes


class Scored(NamedTuple):
    """Predictions, with the list of their images and their classes."""

    predictions: Predictions
    files: FileList
    classes: Classes


class TargetScored(NamedTuple):
    """Predicted labels or numbers, with the list of their images and what the labels or numbers are."""

    predictions: TargetPredictions
    files: FileList
    classes: Classes
