"""The ensemble of the folds' networks, and the command that submits with it."""

from pathlib import Path

import dataloader
from evaluation.thresholds import FittedThresholds
from inference.ensemble_file import EnsembleMember, ensemble_content, thresholds_content
from options import NO_TEST_LIST, command
from tools.folds.oof import checkpoint_of
from tools.folds.plan import ENSEMBLE, FoldsRun
from utils.files import file_hash, write_yaml
from utils.logger import log

SAME = ("gpu", "workers", "loader", "worker_timeout", "max_pixels")


def write(run: FoldsRun, identities: list[str], oof: Path, thresholds: FittedThresholds | None = None) -> None:
    """Write ensemble.yaml, with the fitted thresholds of labels if there are some, and log the next command.

    The networks have equal weights. Weights cannot be fitted to oof.npz: each image has the prediction of one network
    there, so nothing tells how two of them complement each other; and which network has the better score on its own
    part depends as much on the part as on the network.
    """
    members = [
        EnsembleMember(str(checkpoint_of(run, fold)), identity, 1 / len(run.folds))
        for fold, identity in zip(run.folds, identities, strict=True)
    ]
    about: dict[str, object] = {
        "fitted_by": "mean",
        "list": str(run.files.source),
        "list_hash": run.files.content_hash(),
        "oof": {"file": oof.name, "sha256": file_hash(oof)},
    }
    if thresholds is not None:
        about["thresholds"] = thresholds_content(thresholds, temperature=1.0)
    path = run.folder / ENSEMBLE
    write_yaml(path, ensemble_content(run.folder, members, run.opt.tta) | about)
    kept = "" if thresholds is None else f", and the thresholds fitted to {oof.name}"
    log.info(f"Written: {path}, {len(members)} networks of equal weights{kept}; {oof}")
    log.info(f"Next: {next_command(run, path)}")


def next_command(run: FoldsRun, path: Path) -> str:
    """Return the command that submits with the ensemble."""
    values = {name: getattr(run.train, name) for name in SAME}
    values |= {"tag": run.train.tag, "ensemble": str(path), "result_dir": run.opt.result_dir}
    test = Path(dataloader.lists_of(run.train)["data_root"]) / "test.txt"
    return command("submit", values | ({} if test.is_file() else {"test_list": NO_TEST_LIST}))
