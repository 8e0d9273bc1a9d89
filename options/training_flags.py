"""Flags of the training run: optimizer, schedule, precision, steps; then validation and checkpoints."""

from options import choices
from options.parser import AddFlag, Parser


def training(parser: Parser) -> None:
    """Add epochs, optimizer, schedule, precision, and the ways to step and to average."""
    add = parser.group("training")
    _optimizer(add)
    _schedule(add)
    _speed(add)
    _steps(add)


def _optimizer(add: AddFlag) -> None:
    """Add the preset, the number of epochs, and the optimizer with its numbers."""
    add(
        "--preset",
        choices=choices.PRESETS,
        default="auto",
        help="values of the flags that are not given: auto chooses those marked so for the network, the images and the "
        "length of the run, and logs each with its reason; original takes the template's",
    )
    add(
        "--epochs",
        type=int,
        default=20,
        low=1,
        metavar="N",
        derived=True,
        help="number of epochs; a schedule such as 2x sets its own",
    )
    add(
        "--hours",
        type=float,
        low=0.001,
        metavar="H",
        help="train for this long, start-up and validation included, instead of a number of epochs: "
        "the schedule ends with the time",
    )
    add("--optimizer", default="adamw", derived=True, help=", ".join(choices.OPTIMIZERS))
    add("--lr", type=float, default=5e-4, low=0, high=100, derived=True, help="peak learning rate")
    add(
        "--weight_decay",
        type=float,
        low=0,
        derived=True,
        help="not applied to norms and biases; original: 0.05 for adamw, lion and muon, 1e-4 for the others",
    )
    add("--momentum", type=float, default=0.9, low=0, high=1, help="momentum of sgd")


def _schedule(add: AddFlag) -> None:
    """Add the schedule of the learning rate."""
    add("--scheduler", default="cos", help=f"{', '.join(choices.SCHEDULERS)}, or Nx for any N")
    add(
        "--warmup",
        type=float,
        default=0.0,
        low=0,
        metavar="EPOCHS",
        derived=True,
        help="epochs of linear warmup of the learning rate",
    )
    add("--min_lr", type=float, default=0.0, low=0, help="final learning rate of cos, poly and onecycle")
    add(
        "--step_size",
        type=int,
        default=10,
        low=1,
        metavar="EPOCHS",
        help="--scheduler step: multiply the learning rate by 0.1 every N epochs",
    )


def _speed(add: AddFlag) -> None:
    """Add precision, compilation, gradient checkpointing, and batch norm across processes."""
    add(
        "--precision",
        choices=choices.PRECISIONS,
        default="auto",
        help="auto: bf16 or fp16 on a GPU; on the CPU the faster of fp32 and bf16",
    )
    add("--compile", action="store_true", help="compile the network with torch.compile: slow start, faster steps")
    add(
        "--checkpoint_grad",
        "--grad_checkpointing",
        action="store_true",
        help="keep fewer activations, and compute them again in the backward pass: less memory, slower steps",
    )
    add(
        "--sync_bn",
        action="store_true",
        help="several processes: batch norm over the whole batch instead of each process's part",
    )


def _steps(add: AddFlag) -> None:
    """Add clipping, accumulation, averages of the weights, and SAM."""
    add(
        "--clip_grad",
        type=float,
        low=0,
        metavar="VALUE",
        help="clip the gradient to this value, in the way of --clip_mode",
    )
    add(
        "--clip_mode",
        choices=("norm", "value", "agc"),
        default="norm",
        help="--clip_grad bounds the norm of the whole gradient, each element, "
        "or the norm per unit relative to its weights (agc; try 0.01)",
    )
    add(
        "--accumulate", "--grad_accum_steps", type=int, default=1, low=1, metavar="K", help="batches per optimizer step"
    )
    add(
        "--ema",
        type=float,
        default=0.0,
        low=0,
        high=0.999999,
        metavar="DECAY",
        help="keep an exponential moving average of the weights, validate both, use the better",
    )
    add(
        "--swa",
        type=int,
        low=1,
        metavar="EPOCH",
        help="from this epoch on, also average the weights at the end of each epoch",
    )
    add(
        "--sam",
        type=float,
        default=0.0,
        low=0,
        metavar="RHO",
        help="sharpness-aware minimization with this radius (try 0.05); doubles the time per step",
    )


def saving(parser: Parser) -> None:
    """Add validation, checkpoints and limits on errors."""
    add = parser.group("records")
    add(
        "--val_freq",
        type=int,
        default=1,
        low=0,
        metavar="N",
        help="validate every N epochs and after the last; 0: never, no validation list needed",
    )
    add(
        "--metric",
        choices=choices.METRICS,
        default="top1",
        help="what makes an epoch the best: decides best.pt, --patience, "
        f"and the weights of --ema and --swa to predict with; default of another --task: {choices.metrics_of_tasks()}",
    )
    add(
        "--patience",
        type=int,
        default=0,
        low=0,
        metavar="N",
        help="end the run after N validations without a better --metric; 0: train all epochs",
    )
    add(
        "--keep",
        "--keep_last",
        type=int,
        default=3,
        low=0,
        metavar="N",
        help="keep the checkpoints of the last N epochs, besides last.pt and best.pt",
    )
    add(
        "--save_freq",
        type=int,
        default=10,
        low=1,
        metavar="N",
        help="also keep the checkpoint of every N-th epoch and of the last",
    )
    add(
        "--histograms",
        action="store_true",
        help="write histograms of weights and gradients to TensorBoard every epoch",
    )
    add(
        "--save_minutes",
        type=float,
        default=10,
        low=0,
        metavar="MIN",
        help="also write last.pt within an epoch, every this many minutes",
    )
    add(
        "--max_bad",
        "--max_unreadable",
        type=float,
        default=0.01,
        low=0,
        high=1,
        help="stop the run when more than this fraction of the training list, and more than 10 images, cannot be read",
    )
    add(
        "--max_nan",
        "--max_nonfinite_steps",
        type=int,
        default=10,
        low=0,
        metavar="N",
        help="skip steps with a non-finite gradient; after N in a row restore last.pt once, then stop; 0: no check",
    )
