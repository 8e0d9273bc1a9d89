"""Run train.py by a clock that counts work instead of time: each training step is a second, each validation five.

    python ticking.py train.py ...

Of several processes, the clocks of all but the first run seven times as fast.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def tick(set_attribute: Callable[[Any, str, Any], None], factor: float = 1.0) -> None:
    """Let `utils.clock` count the work of this process; `set_attribute` is setattr, or that of a MonkeyPatch."""
    from inference import evaluating
    from training.engine import Engine
    from utils import clock

    seconds = [100.0]
    step, evaluate = Engine.train_step, evaluating.evaluate

    def train_step(engine, batch):
        seconds[0] += factor
        return step(engine, batch)

    def evaluated(*args):
        seconds[0] += 5 * factor
        return evaluate(*args)

    set_attribute(Engine, "train_step", train_step)
    set_attribute(evaluating, "evaluate", evaluated)
    set_attribute(clock, "now", lambda: seconds[0])


if __name__ == "__main__":
    from utils import distributed

    tick(setattr, factor=7.0 if distributed.rank() else 1.0)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
