"""Images are normalised as the folder of the weights says, and so they are after training."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from network import get_model
from network.loading import build_from_checkpoint, load_weights
from options import parse_train
from utils import checkpoint
from utils.errors import UserError

CLASSES = 3
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]
OWN = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of timm's test_resnet


def folder(path, config, preprocessor=None):
    """Write the weights of timm's test_resnet into the folder `path`, as the hub has them; return their network."""
    net = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    save_file(net.state_dict(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return net


def loaded(path):
    return build_from_checkpoint(checkpoint.load(path), str(path), "timm:test_resnet")[0]


@pytest.mark.parametrize(
    ("config", "preprocessor", "mean", "std"),
    [
        ({"pretrained_cfg": {"mean": MEAN, "std": STD}}, None, MEAN, STD),
        ({"mean": MEAN, "std": STD}, None, MEAN, STD),
        ({}, {"image_mean": MEAN, "image_std": STD, "rescale_factor": 0.00392156862745098}, MEAN, STD),
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": STD}}, {"image_mean": MEAN, "image_std": STD}, MEAN, STD),
        ({}, {"do_normalize": False}, [0.0] * 3, [1.0] * 3),
        ({}, {"image_mean": [0.5], "image_std": [0.25], "rescale_factor": 2 / 255}, [0.25] * 3, [0.125] * 3),
        ({}, {"image_mean": [127.5] * 3, "image_std": [51.0] * 3, "do_rescale": False}, [0.5] * 3, [0.2] * 3),
        ({}, {"size": 224}, *OWN),
        ({"pretrained_cfg": {"mean": None}}, None, *OWN),
    ],
)
def test_load_folder_normalises_as_it_says(tmp_path, caplog, config, preprocessor, mean, std):
    net = folder(tmp_path, config, preprocessor)
    with caplog.at_level("INFO"):
        model = loaded(tmp_path)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.no_grad():
        assert torch.allclose(model(images), net((images / 255 - shift) / scale), atol=1e-5)
    assert model.preprocess().mean == pytest.approx(tuple(mean)) and model.std == pytest.approx(tuple(std))
    assert ("says how its images are normalised" in caplog.text) is (tuple(std) != OWN[1])


def test_checkpoint_of_training_keeps_the_normalisation(tmp_path):
    """It holds the mean that it was trained with, which is not that of its network's name."""
    folder(tmp_path, {"mean": MEAN, "std": STD})
    first = loaded(tmp_path)
    own = {"format": 1, "weights": first.net.state_dict(), "data": {"preprocess": first.preprocess().as_dict()}}
    model = get_model("timm:test_resnet")(parse_train(["--num_classes", str(CLASSES), "--no-pretrained"]))
    assert (model.mean, model.std) == OWN
    load_weights(model, own, "best.pt")
    assert (model.mean, model.std) == (tuple(MEAN), tuple(STD))
    assert torch.equal(model._scale, first._scale) and torch.equal(model._shift, first._shift)


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"image_mean": MEAN, "image_std": [0.1, 0.0, 0.1]},
        {"image_mean": [0.1, 0.2], "image_std": STD},
        {"image_mean": "grey", "image_std": STD},
        {"image_mean": MEAN, "image_std": 1},
        {"image_mean": [float("nan")] * 3, "image_std": STD},
        {"image_mean": MEAN, "image_std": STD, "rescale_factor": 0},
        {"image_mean": MEAN, "image_std": STD, "rescale_factor": float("nan")},
    ],
)
def test_load_folder_with_a_wrong_normalisation_is_refused(tmp_path, preprocessor):
    folder(tmp_path, {}, preprocessor)
    with pytest.raises(UserError, match=r"preprocessor_config\.json says how images are normalised"):
        checkpoint.load(tmp_path)
