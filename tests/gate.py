"""Run train.py, but wait once after each of some epochs, until the test goes on.

    python gate.py FOLDER EPOCH,EPOCH train.py ...

After epoch E is saved the run makes FOLDER/E, and waits for FOLDER/E.open or for a signal that its own handler notes.
So a kill always hits a run that is under way, however busy the machine is. Standard input ends with the test, and so
does the run.
"""

import os
import runpy
import select
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def end_with_the_test() -> None:
    select.select([0], [], [])  # nothing is ever written: it is readable when the other end is closed
    os._exit(99)


def hold(folder: Path, epochs: set[int]) -> None:
    """Let a run of this process wait after each of `epochs`."""
    from training.run import TrainingRun

    real = TrainingRun._save_epoch

    def saved_and_held(run, epoch):
        real(run, epoch)
        here = folder / str(epoch)
        if epoch in epochs and run.recorder is not None and not here.exists():
            run.writer.wait()
            here.touch()
            while run.signals.received is None and not here.with_suffix(".open").exists():
                time.sleep(0.01)

    TrainingRun._save_epoch = saved_and_held


def main() -> None:
    hold(Path(sys.argv[1]), {int(word) for word in sys.argv[2].split(",")})
    threading.Thread(target=end_with_the_test, daemon=True).start()
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
