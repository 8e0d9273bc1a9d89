"""Each fold is one run of train.py, in processes of its own: a finished one is skipped, an interrupted one resumes."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dataloader import lists_of
from options import build_parser
from options.commands import words
from tools.folds.plan import Fold, FoldsRun, check_networks, wait_until_free
from tools.train_process import train_process
from utils import checkpoint
from utils.errors import UserError
from utils.files import write_json
from utils.logger import log
from utils.signals import STOP_SIGNALS, RunInterrupted

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"
# Options of a resumed run that its checkpoint does not restore.
PLACES = ("debug", "checkpoint_dir", "log_dir", "gpu", "workers", "loader", "worker_timeout")


def train_folds(run: FoldsRun) -> None:
    """Train every fold that is not trained yet.

    Raises:
        UserError: a run failed; its own message is above.
        RunInterrupted: a signal ended a run, which has saved its state.
    """
    for fold in run.folds:
        where = f"Fold {fold.number} of {len(run.folds)}"
        if fold.is_trained():
            log.info(f"{where}: {fold.tag} is trained already.")
            continue
        wait_until_free(fold)
        line = words_of(run, fold)
        resumes = "--resume" in line
        if not resumes:  # train.py compares the teacher of a run that it resumes, which reads no other network
            check_networks(run)
        log.info(f"{where}: {'resuming' if resumes else 'training'} {fold.tag}.")
        _check_code(launch(line, run.opt.processes), f"{where}, tag {fold.tag}")
        last = fold.checkpoints / "last.pt"
        if not last.is_file():
            raise UserError(f"{where}: the training ended without {last}; see its log above.")
        write_json(fold.trained, {"tag": fold.tag, "identity": checkpoint.identity(checkpoint.load(last))})


def words_of(run: FoldsRun, fold: Fold) -> list[str]:
    """Return the words for train.py: they begin the run, or resume it once it has saved anything."""
    parser, train = build_parser("train"), run.train
    if (fold.checkpoints / "last.pt").is_file():
        kept = [name for name in PLACES if name != "loader" or "loader" in train.given]
        kept += [name for name in ("cache",) if name in train.given]
        return words(parser, {name: getattr(train, name) for name in kept} | {"tag": fold.tag, "resume": True})
    own = {
        "tag": fold.tag,
        "train_list": str(fold.train_list),
        "val_list": str(fold.val_list),
        "num_classes": run.classes.count,
    }
    # --overwrite: of a run that was killed before its first checkpoint, records may be there. The plan owns the tag.
    root = ["--data_root", lists_of(train)["data_root"]]  # where submit.py will look for test.txt
    return [*run.words, *words(parser, own), *root, "--overwrite"]


def launch(line: Sequence[str], processes: int) -> int:
    """Run train.py with the words `line`, under torchrun if `processes` is above 1; return its exit code."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), str(SCRIPT), *line]
    with train_process(command, end_seconds=None) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal sent Ctrl-C to it too, and it saves its state
            raise


def _check_code(code: int, what: str) -> None:
    """Raise an error if a run did not end well."""
    if code == 0:
        return
    again = "Run the same command again to continue."
    if code - 128 in set(STOP_SIGNALS):
        raise RunInterrupted(code - 128, f"{what}: the training was interrupted. {again}")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    memory = " Signal 9 often means that the machine has no memory left." if code == -9 else ""
    raise UserError(f"{what}: the training {how}; its message is above.{memory}\nOnce that is fixed: {again}")
