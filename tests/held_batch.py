"""Run a script whose process waits before its second batch of predictions, until the test ends it.

    python held_batch.py FOLDER RANK eval.py ...

The process of that rank makes FOLDER/held, and waits. Standard input ends with the test, and so does the process.
"""

import runpy
import sys
import threading
from pathlib import Path

from gate import end_with_the_test  # it adds the project to sys.path
from utils import distributed


def hold(folder: Path, rank: int) -> None:
    """Let this process wait in its predictions, if it has this rank."""
    from inference.predictor import Predictor

    real, seen = Predictor.member_probabilities, []

    def predicted_or_held(predictor, *given):
        seen.append(given)
        if distributed.rank() == rank and len(seen) == 2:
            (folder / "held").touch()
            threading.Event().wait()  # for ever: the process is ended from outside
        return real(predictor, *given)

    Predictor.member_probabilities = predicted_or_held


def main() -> None:
    hold(Path(sys.argv[1]), int(sys.argv[2]))
    threading.Thread(target=end_with_the_test, daemon=True).start()
    sys.argv = sys.argv[3:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
