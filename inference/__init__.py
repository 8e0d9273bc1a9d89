"""Checkpoints into probabilities."""

from inference.ensemble import fit_ensemble, with_ensemble, write_ensemble
from inference.features import Features
from inference.gradcam import gradcam_maps
from inference.loading import load_predictor
from inference.predictor import Member, Predictor, predict, rows_to_keep

__all__ = [
    "Features",
    "Member",
    "Predictor",
    "fit_ensemble",
    "gradcam_maps",
    "load_predictor",
    "predict",
    "rows_to_keep",
    "with_ensemble",
    "write_ensemble",
]
