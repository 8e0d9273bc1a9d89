"""Draw a sheet of augmented training samples with their labels: what the network will see.

    python -m tools.preview --data_root datasets/fashion-mnist --transform resize
    python -m tools.preview --transform light --samples 4 --views 12 --out light.png

Takes train.py's options. Each row is one image: first as evaluation sees it, then augmented as in epochs 1, 2, …,
each at its size of --scale_schedule. Writes a PNG, and the same picture into TensorBoard under logs/<tag>.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from tensorboardX import SummaryWriter

import dataloader
from dataloader.dataset import EvalDataset, TrainDataset
from dataloader.reader import FileReader
from dataloader.sampler import BatchIndices
from dataloader.transforms import build_stages
from evaluation.report.figures import captions_of
from evaluation.report.plots import gallery
from options import Options, build_parser
from options.choices import AUTO_BATCH
from options.defaults import fill_defaults
from options.parser import expanded
from options.shared_flags import force
from options.wording import count_of
from training.start import facts_of, warn_unused
from utils.logger import log, progress
from utils.outputs import Output, check, inputs, is_plot
from utils.preprocess import Preprocess
from utils.run import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and draw; return the exit code."""
    parser = build_parser("train")
    parser.prog = "-m tools.preview"
    group = parser.group("preview")
    group("--samples", type=int, default=6, low=1, high=64, help="images, one per row")
    group("--views", type=int, default=8, low=1, high=64, help="augmented versions of each image")
    force(group, "--out")
    group("--out", type=expanded, metavar="FILE", help="where the PNG goes; by default logs/<tag>/preview.png")
    return run_tool(lambda: parser.parse(argv), draw, write_flags="--out FILE")


def draw(opt: Options) -> None:
    """Draw the sheet, and write it as a PNG and into TensorBoard."""
    files = dataloader.open_list(opt, "train", drop_missing=True, task=opt.task)
    if opt.batch_size == AUTO_BATCH:
        opt = opt.replace(batch_size=build_parser("train").get_default("batch_size"))  # no batch is trained
    opt, _ = fill_defaults(opt, facts_of(opt, len(files)))  # the network has no part in pictures
    warn_unused(opt)
    out = Path(opt.out or Path(opt.log_dir) / opt.tag / "preview.png")
    check([Output(out, "a drawn picture", is_plot)], inputs(opt, files), [files], opt.force)
    classes = dataloader.find_classes(files, opt.num_classes, opt.task)
    files = files.with_count(classes.count)
    preprocess = Preprocess(opt.scale, opt.fit, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    chosen = np.random.default_rng(opt.seed).permutation(len(files))[: opt.samples]
    once = np.zeros_like(chosen)
    plain = (
        EvalDataset(files, FileReader(files), (preprocess,)).__getitems__(BatchIndices(0, 0, chosen, once)).images[0]
    )
    dataset = TrainDataset(files, FileReader(files), build_stages(opt, preprocess), opt.seed)
    epochs = [
        dataset.__getitems__(BatchIndices(epoch, 0, chosen, once)).image
        for epoch in progress(range(1, opt.views + 1), "augmenting")
    ]
    sizes = [f", {view.shape[-1]} px" if opt.scale_schedule else "" for view in epochs]
    images, captions = [], []
    for row, caption in enumerate(captions_of(classes, files.batch_targets(chosen))):
        images += [view[row].permute(1, 2, 0).numpy() for view in (plain, *epochs)]
        captions += [caption, *(f"epoch {epoch}{size}" for epoch, size in enumerate(sizes, 1))]
    gallery(out, images, captions, f"--transform {opt.transform}, {opt.scale} px", columns=opt.views + 1)
    side = max(view.shape[-1] for view in (plain, *epochs))
    views = [F.interpolate(view, (side, side), mode="nearest-exact").numpy() for view in (plain, *epochs)]
    sheet = np.concatenate(list(np.concatenate(views, axis=3)), axis=1)
    with SummaryWriter(str(Path(opt.log_dir) / opt.tag)) as writer:
        writer.add_image(f"preview/{opt.transform}", sheet)
    chosen_for = ""
    if opt.preset != "original" and "transform" not in opt.given and "epochs" not in opt.given:
        # without the network it is not known whether its weights are trained, nor therefore how long its run is
        chosen_for = f", augmented as in {count_of(opt.epochs, 'epoch')} (--epochs N shows those of another run)"
    log.info(
        f"{count_of(len(chosen), 'image')} with {count_of(opt.views, 'view')} each{chosen_for}: {out}, "
        f"and TensorBoard in {opt.log_dir}/{opt.tag}"
    )


if __name__ == "__main__":
    sys.exit(main())
