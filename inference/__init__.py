"""Checkpoints into probabilities."""

from inference.ensemble import fit_ensemble
from inference.ensemble_file import write_ensemble
from inference.features import Features
from inference.gradcam import gradcam_maps
from inference.images import ImagePredictor, load
from inference.loading import load_predictor
from inference.members import build_member
from inference.predictor import Member, Predictor, predict, rows_to_keep
from inference.session import Inference, open_inference
from inference.targets import predict_list, predict_targets

__all__ = [
    "Features",
    "ImagePredictor",
    "Inference",
    "Member",
    "Predictor",
    "build_member",
    "fit_ensemble",
    "gradcam_maps",
    "load",
    "load_predictor",
    "open_inference",
    "predict",
    "predict_list",
    "predict_targets",
    "rows_to_keep",
    "write_ensemble",
]
