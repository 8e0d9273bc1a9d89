"""Which flags of a prediction fit which task."""

import argparse

from options import rules
from options.choices import TASK_BLENDS, TASK_METRICS, TASKS
from utils.errors import UserError
from utils.task import has_probabilities

CLASS_TASKS = tuple(task for task in TASKS if has_probabilities(task))
PROBABILITY_TASKS = (*CLASS_TASKS, "multilabel")
# Flags that fit some tasks alone: those tasks, and what the flag is for.
FLAG_TASKS: dict[str, tuple[tuple[str, ...], str]] = {
    "threshold": (("multilabel",), "several labels per image"),
    "fit_thresholds": (("multilabel",), "several labels per image"),
    "probabilities": (("multilabel",), "several labels per image"),
    "calibrate": (PROBABILITY_TASKS, "probabilities"),
    "temperature": (PROBABILITY_TASKS, "probabilities"),
    "pseudo_label": (PROBABILITY_TASKS, "probabilities"),
    "top_k": (CLASS_TASKS, "one class per image"),
}


def check_task(opt: argparse.Namespace, task: str, path: str) -> None:
    """Raise UserError where a flag of eval.py or submit.py does not fit the task of the checkpoint `path`."""
    for name, known in (("metric", TASK_METRICS), ("blend", TASK_BLENDS)):
        value = vars(opt).get(name)
        if value is not None and value not in known[task]:
            raise UserError(
                f"--{name} {value} does not fit {path}, whose task is {task}; allowed: {', '.join(known[task])}."
            )
    for name, (tasks, purpose) in FLAG_TASKS.items():
        if rules.is_on(opt, name) and task not in tasks:
            raise UserError(f"--{name} is for {purpose}; the task of {path} is {task}. Leave it out.")
