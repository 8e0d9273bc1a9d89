"""Scores weights on the validation list, as eval.py does, and prints them as a table."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import dataloader
from evaluation.ranking import merit
from inference import Predictor, build_member
from inference.evaluating import evaluate
from options.choices import TASK_METRICS
from options.wording import count_of
from tools.average.ingredients import Ingredient
from utils.classes import Classes
from utils.errors import UserError
from utils.logger import log

if TYPE_CHECKING:
    from tools.average.soups import Soup

MAX_COLUMNS = 4  # of scores, in the table
Scores = dict[str, float]


class Scorer:
    """Scores weights of one network on one validation list.

    Attributes:
        metric: the score that decides.
        files: the list.
    """

    def __init__(
        self, opt: argparse.Namespace, parts: Sequence[Ingredient], device: torch.device, metric: str | None
    ) -> None:
        """Open the validation list; `opt` are flags of eval.py.

        Raises:
            UserError: there is no such list, its classes are others, or --metric is not of the task.
        """
        self.opt, self.device, self.first = opt, device, parts[0].content
        self.classes = Classes.from_dict(self.first["data"])
        known = TASK_METRICS[self.classes.task]
        self.metric: str = metric or self.first["opt"].get("metric") or known[0]
        if self.metric not in known:
            raise UserError(
                f"--metric {self.metric} does not fit --task {self.classes.task}; allowed: {', '.join(known)}."
            )
        lists = {part.path: part.content["data"].get("lists") for part in parts}
        files = dataloader.open_list(opt, "val", known=lists, task=self.classes.task)
        self.files = dataloader.align_labels(files, self.classes, "the checkpoints")
        dataloader.warn_changed(self.files, "val", {part.path: part.content["data"] for part in parts})

    def __call__(self, weights: dict[str, Tensor], title: str, thresholds: list[float] | None = None) -> Scores:
        """Return the scores of evaluation.scoring.score; `title` says in messages what the weights are.

        `thresholds`: of labels, those that were fitted to these weights; None: 0.5.

        Raises:
            NotFinite: the network gives NaN or infinite logits.
        """
        member, _, _ = build_member({**self.first, "weights": weights}, title, self.opt, self.device)
        predictor = Predictor([member])
        loader = dataloader.eval_loader(self.opt, self.files, predictor.preprocesses)
        scores = evaluate(predictor, loader, replace(self.classes, thresholds=thresholds))
        log.info(f"{title}: {self.metric} {scores[self.metric]:.6f}")
        return scores

    def merit(self, scores: Mapping[str, float]) -> float:
        """Return what the metric makes of `scores`: higher is better."""
        return merit(scores, self.metric)

    def columns(self, scores: Mapping[str, float]) -> list[str]:
        """Return the scores that the table shows, --metric first."""
        known = TASK_METRICS[self.classes.task]
        return [self.metric, *(name for name in known if name != self.metric and name in scores)][:MAX_COLUMNS]


def table(out: Path, parts: Sequence[Ingredient], soup: "Soup", scorer: Scorer) -> str:
    """Return the scores of each ingredient and of the result, as lines of a table."""
    columns = scorer.columns(soup.scores)
    rows = [
        (f"{part.path} ({part.shown})", scores, "yes" if used else "no")
        for part, scores, used in zip(parts, soup.single, soup.used, strict=True)
    ]
    rows.append((str(out), soup.scores, f"{sum(soup.used)} of {len(parts)}"))
    wide = max(len(name) for name, _, _ in rows)
    lines = [f"{'':{wide}}" + "".join(f"  {name:>{max(10, len(name))}}" for name in columns) + "  averaged"]
    for name, scores, used in rows:
        cells = "".join(f"  {scores[key]:{max(10, len(key))}.6f}" for key in columns)
        lines.append(f"{name:{wide}}{cells}  {used}")
    return "\n".join(["", *lines, f"({scorer.files.source}, {count_of(int(soup.scores['count']), 'image')})"])
