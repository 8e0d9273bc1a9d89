"""Writes the model card: README.md, with the header that the Hugging Face hub reads."""

import argparse
from typing import Any, NamedTuple

import yaml

from network.base_model import BaseModel
from options import build_parser
from options.choices import TASK_METRICS
from options.values import flag_text
from options.wording import count_of
from utils.classes import Classes, counted
from utils.preprocess import Preprocess
from utils.task import CORN, LINEAR, POSITION, SIGMOID, SOFTMAX
from utils.text import visible

OUTPUTS = {
    SOFTMAX: "The softmax of the logits gives the probabilities of the classes.",
    SIGMOID: "The sigmoid of each logit gives the probability of that label.",
    CORN: "Logit k says whether the class is above k, given that it is above k - 1 (CORN; Shi et al., 2021).",
    LINEAR: "The outputs are standardised: multiply by `target_std`, then add `target_mean`, both of `config.json`.",
    POSITION: (
        "The output is standardised: multiply by `target_std`, add `target_mean`, both of `config.json`, and clamp it "
        "to 0 and the last class. The class is how many of the `cut_points` are at or below that number."
    ),
}
HOW = ("tta", "scale", "fit", "temperature", "precision")  # options of an evaluation that change its scores
FIT_TEXTS = {
    "squash": "both sides are resized to {scale} pixels",
    "crop": "the short side is resized to {scale} / 0.875 pixels, and the centre of {scale} x {scale} is shown",
    "pad": "the long side is resized to {scale} pixels, and the rest is filled with the mean colour",
}


class CardFacts(NamedTuple):
    """What the card says.

    Attributes:
        scores: as in scores.json.
        reason: why timm cannot load the folder; "": it can.
    """

    title: str
    model: BaseModel
    classes: Classes
    preprocess: Preprocess
    scores: dict[str, Any]
    reason: str


def card_text(opt: argparse.Namespace, facts: CardFacts) -> str:
    """Return the text of README.md; `opt` has the licence and the repository."""
    title, model, classes, preprocess, scores, reason = facts
    parts = [
        f"---\n{_header(opt, classes, not reason)}---",
        f"# {visible(title)}",
        f"{model.name}, {counted(classes.count, classes.task)}, images of {preprocess.scale} x {preprocess.scale} "
        "pixels.",
        "## Use",
        *_use(opt.push, model, reason),
        OUTPUTS[model.settings.activation],
        "`classes.txt` has their names, one per line." if classes.names else "They are numbered from 0, without names.",
        "## Preprocessing",
        f"{FIT_TEXTS[preprocess.fit].format(scale=preprocess.scale).capitalize()}. RGB values in 0..1 are normalised "
        f"with mean {list(preprocess.mean)} and standard deviation {list(preprocess.std)}. "
        "`preprocess.json` holds these numbers. Other programs resize by their own code, so pixels differ a little.",
        *_scores(scores, classes.task),
        "## Provenance",
        "`provenance.json` has the checkpoint's sha256, its options, the hash of its training list, and the versions "
        "of the packages. `model.safetensors` holds a sha256 of its content, which loading verifies.",
        "## Licence",
        _licence(opt),
    ]
    return "\n\n".join(parts) + "\n"


def _header(opt: argparse.Namespace, classes: Classes, in_timm: bool) -> str:
    """Return the header, as YAML."""
    header: dict[str, Any] = {}
    for name in ("license", "license_name", "license_link"):
        header |= {name: getattr(opt, name)} if getattr(opt, name) else {}
    header |= {"library_name": "timm"} if in_timm else {}
    if classes.task != "regression":
        header["pipeline_tag"] = "image-classification"
    tags = ["image-regression" if classes.task == "regression" else "image-classification"]
    header["tags"] = [*tags, *(["timm"] if in_timm else []), "safetensors"]
    return str(yaml.safe_dump(header, sort_keys=False, allow_unicode=True))


def _use(repository: str | None, model: BaseModel, reason: str) -> list[str]:
    place = f"hf-hub:{repository}" if repository else "local-dir:DIR"
    load = f"hf-hub:{repository}" if repository else "DIR"
    own = (
        "With the image classification training framework that wrote it:\n\n"
        f"```bash\npython eval.py --load {load}\npython submit.py --load {load} --images photos/\n"
        f"python train.py --model {model.name} --load {load}\n```"
    )
    if reason:
        return [f"timm cannot load this folder: {reason}. It loads with the framework alone.", own]
    code = (
        "```python\nimport timm\n\n"
        f'model = timm.create_model("{place}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
        "logits = model(transform(image).unsqueeze(0))  # image: RGB, of Pillow\n```"
    )
    return ["With timm:", code, own]


def _scores(scores: dict[str, Any], task: str) -> list[str]:
    """Return the section with the scores, as a table."""
    columns = [
        ("evaluation", _evaluated(scores.get("evaluation", {})), ""),
        ("average", "the validation list", ""),
        ("epoch", "the validation list, in training", "val_"),
    ]
    rows = [
        f"| {what} | {name} | {scores[key][prefix + name]:.4f} |"
        for key, what, prefix in columns
        for name in TASK_METRICS[task]
        if prefix + name in scores.get(key, {})
    ]
    if not rows:
        return ["## Scores", "The checkpoint holds no scores of this epoch."]
    note = "The validation list chose the epoch or the average, so its scores are optimistic."
    return ["## Scores", "\n".join(["| measured on | metric | score |", "|---|---|---|", *rows]), note]


def _evaluated(evaluation: dict[str, Any]) -> str:
    """Return what an evaluation of scores.json measured: how many images, and how if not as the checkpoint predicts."""
    options, get_default = evaluation.get("options", {}), build_parser("eval").get_default
    flags = [flag_text(name, options[name]) for name in HOW if options.get(name) not in (None, get_default(name))]
    return " ".join([f"an evaluation of {count_of(evaluation.get('count', 0), 'image')}", *flags])


def _licence(opt: argparse.Namespace) -> str:
    if opt.license == "other":
        return f"{visible(opt.license_name)}: {visible(opt.license_link)}"
    if opt.license:
        return f"`{opt.license}`"
    return "No licence was named. Ask the owner before you use the weights."
