"""Checkpoints into probabilities."""

from inference.ensemble import fit_ensemble, with_ensemble, write_ensemble
from inference.features import Features
from inference.gradcam import explain
from inference.loading import load_predictor
from inference.predictor import Member, Predictor, predict, whole_rows

__all__ = [
    "Features",
    "Member",
    "Predictor",
    "explain",
    "fit_ensemble",
    "load_predictor",
    "predict",
    "whole_rows",
    "with_ensemble",
    "write_ensemble",
]
