"""Run train.py in two processes, of which the second gets SIGUSR1, and hold the checkpoint that this causes.

    python held_write.py FOLDER train.py ...

The signal comes in the first batch of epoch 2. FOLDER/held exists once the checkpoint would be written; that waits for
FOLDER/release. While process 1 waits for what process 0 sends to all, FOLDER/waits exists.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def hold(folder: Path) -> None:
    """Hold the writing of this process, or let it get the signal and note its waiting."""
    import torch

    from training.engine import Engine
    from utils import checkpoint

    save, step, broadcast = checkpoint.save, Engine.train_step, torch.distributed.broadcast_object_list

    def held(path, content, also=()):
        if content["within"] is not None:
            (folder / "held").touch()
            while not (folder / "release").exists():
                time.sleep(0.01)
            print("written", flush=True)
        save(path, content, also)

    def signalled(engine, batch):
        if (batch.epoch, batch.number) == (2, 0):
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(engine, batch)

    def noted(*words, **more):
        (folder / "waits").touch()
        broadcast(*words, **more)
        (folder / "waits").unlink()

    checkpoint.save = held
    if os.environ["RANK"] == "1":
        Engine.train_step, torch.distributed.broadcast_object_list = signalled, noted


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
