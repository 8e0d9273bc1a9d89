"""Finds the layout of a file of weights, and the prefix of its names, so that all of it fits the network."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from network.layouts import efficientnet, inverted_residuals, torchvision, transformers
from network.layouts.declared import check_architecture, twin_of
from network.layouts.layout import Layout, Target, Weights
from network.layouts.reshape import first_convolution, reshaped, same_numbers
from options.wording import count_of
from utils.errors import UserError
from utils.foreign_weights import prefix_hint
from utils.logger import log

WRAPPED = (
    "module",
    "network",
    "backbone",
    "model",
    "encoder",
    "net",
    "timm_model",
    "_orig_mod",
)  # the parts of a prefix
COMPILED = "_orig_mod."  # torch.compile's, at any place of a name
COUNTER = "num_batches_tracked"  # files older than PyTorch 0.4.1 have none
OWN = "the network's own names"
OWN_IGNORED = r"mask_token|.*\.(relative_position_index|attn_mask|total_ops|total_params)"
OF_TIMM = ("timm.models.convnext", "timm.models.swin_transformer")  # it converts the authors' files of these
MAX_SHOWN = 4


@dataclass
class Adapted:
    """A file's weights under the network's names.

    Attributes:
        weights: of the network, and its classifier also in another size.
        layout, prefix: what was found.
        renamed: (old, new) names.
        reshaped: (name, old shape, new shape).
        left_out: what the network does not need.
        wrong: why it does not fit; empty if it does.
        matched: how many tensors besides the classifier fit.
    """

    weights: Weights
    layout: str
    prefix: str
    renamed: list[tuple[str, str]] = field(default_factory=list)
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    matched: int = 0

    @property
    def below(self) -> str:
        """Return where in the file it is, for messages."""
        return f" below {self.prefix!r}" if self.prefix else ""

    def table(self, source: str, fresh: Sequence[str]) -> str:
        """Return what became of the file's tensors, as lines; `fresh` are those of the classifier that start new."""
        taken = len(self.weights) - len(fresh)
        rows = [f"{source}: {self.layout}{self.below}", f"  taken     {taken} tensors"]
        if self.renamed:
            rows.append(f"  renamed   {len(self.renamed)}, such as {self.renamed[0][0]} -> {self.renamed[0][1]}")
        rows += [f"  reshaped  {name} {old} -> {new}" for name, old, new in self.reshaped[:MAX_SHOWN]]
        if len(self.reshaped) > MAX_SHOWN:
            rows.append(f"  reshaped  {len(self.reshaped) - MAX_SHOWN} more")
        if self.left_out:
            rows.append(f"  left out  {_few(self.left_out)}")
        if fresh:
            rows.append(f"  new       {_few(fresh)} (the classifier)")
        return "\n".join(rows)


def adapt(
    net: nn.Module, weights: Weights, source: str, heads: tuple[str, ...], about: Mapping[str, Any] | None = None
) -> Adapted:
    """Return the weights of a foreign file under the names of `net`, whose every tensor but the classifier's is there.

    Args:
        source: the file, for messages.
        heads: prefixes of the classifier's tensors, "fc." and the like; the first one is its own.
        about: what the file says of its network: "architecture", and "config", as config.json has it.

    Raises:
        UserError: no layout fits, two networks in the file fit, or the layout's shapes mean something else here.
    """
    about = about or {}
    target = Target(net, net.state_dict(), heads[0].rstrip("."), about.get("config") or {})
    found: list[tuple[Adapted, Layout | None]] = []
    nearest: Adapted | None = None
    for prefix, part in _parts(weights):
        for layout in (None, *LAYOUTS):
            if layout is not None and not layout.is_of(part):
                continue
            one = _compare(part, prefix, layout, target, heads)
            if not one.wrong:
                found.append((one, layout))
                break
            nearest = one if nearest is None or one.matched > nearest.matched else nearest
    if not found:
        found = _by_timm(weights, target, heads)
    if not found:
        raise _unfit(weights, target, nearest, source)
    adapted, layout = found[0]
    others = [one.prefix for one, _ in found[1:]] + _other_networks(weights, adapted.prefix, target, heads)
    if others:
        prefixes = " and ".join(repr(prefix) for prefix in (adapted.prefix, *others))
        raise UserError(f"{source} holds several networks that fit, below {prefixes}. Save the one that you mean.")
    reason = layout.check(weights, target) if layout else check_architecture(net, str(about.get("architecture", "")))
    if reason:
        raise UserError(
            f"{source} has the layout of {adapted.layout}, whose shapes fit, but {reason}. "
            "Its predictions would be wrong.\nTry: --model with the network that the file was saved from."
        )
    if layout is None and not about.get("architecture") and (twin := twin_of(net)):
        log.warning(
            f"{source} does not say which network it is of. If it is of timm's {twin}, it fits in names and shapes, "
            f"and its predictions are wrong here. Then try: --model timm:{twin}"
        )
    if layout is not None and layout.note:
        log.warning(f"{source}: {layout.note}")
    names = (name.replace(COMPILED, "") for name in weights)
    adapted.left_out += sorted(name for name in names if not name.startswith(adapted.prefix))
    return adapted


LAYOUTS: tuple[Layout, ...] = (
    *efficientnet.LAYOUTS,
    *inverted_residuals.LAYOUTS,
    *torchvision.LAYOUTS,
    *transformers.LAYOUTS,
)


def _parts(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """Yield each prefix made of WRAPPED, the empty one first, with the tensors below it."""
    weights = {name.replace(COMPILED, ""): value for name, value in weights.items()}
    prefixes = {""}
    for name in weights:
        parts = name.split(".")
        for count in range(1, len(parts)):
            if parts[count - 1] not in WRAPPED:
                break
            prefixes.add(".".join(parts[:count]) + ".")
    for prefix in sorted(prefixes, key=len):
        yield prefix, {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def _other_networks(weights: Weights, found: str, target: Target, heads: tuple[str, ...]) -> list[str]:
    """Return the other prefixes below which all of the network's own names are, besides the prefix that was found."""
    needed = {name for name in target.wanted if not name.startswith(heads) and not name.endswith(COUNTER)}
    rest = {name: value for name, value in weights.items() if not name.replace(COMPILED, "").startswith(found)}
    return [prefix for prefix, part in _parts(rest) if needed <= part.keys()] if needed else []


def _compare(part: Weights, prefix: str, layout: Layout | None, target: Target, heads: tuple[str, ...]) -> Adapted:
    """Return how the tensors of `part` fit the network under the names that `layout` gives them, None: their own."""
    converted = layout.convert(part, target) if layout else part
    one = Adapted({}, layout.name if layout else OWN, prefix)
    stem = first_convolution(target.net)
    for name, value in converted.items():
        if name not in target.wanted:
            if re.fullmatch(layout.ignored if layout else OWN_IGNORED, name) or name.startswith(heads):
                one.left_out.append(name)
            else:
                one.wrong.append(name)
            continue
        wanted = target.wanted[name]
        if not same_numbers(value, wanted) and not name.startswith(heads):
            other = reshaped(name, value, wanted, target.net, stem)
            if other is None:
                one.wrong.append(name)
                continue
            one.reshaped.append((name, tuple(value.shape), tuple(wanted.shape)))
            value = other
        one.weights[name] = value
        one.matched += not name.startswith(heads)
    absent = [name for name in target.wanted if name not in converted and not name.startswith(heads)]
    counted = any(name.endswith(COUNTER) for name in converted)
    for name in absent:
        if name.endswith(COUNTER) and not counted:
            one.weights[name] = target.wanted[name]
        else:
            one.wrong.append(name)
    if layout:
        old = {id(value): name for name, value in part.items()}
        one.renamed = [(old.get(id(value), "…"), name) for name, value in converted.items() if name not in part]
    if not one.matched:
        one.wrong = one.wrong or ["nothing"]
    return one


def _by_timm(weights: Weights, target: Target, heads: tuple[str, ...]) -> list[tuple[Adapted, Layout | None]]:
    """Return the fit of what timm makes of the authors' own files of Swin or ConvNeXt, in a list; [] without one."""
    module = type(target.net).__module__
    if module not in OF_TIMM:
        return []
    convert: Any = sys.modules[module].checkpoint_filter_fn
    for prefix, part in _parts(weights):
        layout = Layout("the authors' names, by timm", r".*", lambda given, _: dict(convert(dict(given), target.net)))
        try:
            with torch.no_grad():
                one = _compare(part, prefix, layout, target, heads)
        except Exception:  # it expects one of the files that it knows
            continue
        if not one.wrong:
            return [(one, layout)]
    return []


def _unfit(weights: Weights, target: Target, nearest: Adapted | None, source: str) -> UserError:
    for _, part in _parts(weights):
        if absent := torchvision.absent_from_timm(part):
            return UserError(f"{source} is of {absent}. timm has no such network, so none here takes its weights.")
    wrong = nearest.wrong if nearest else list(target.wanted)
    held = count_of(len(weights), "tensor")
    what = f"{_few(wrong)} differ. It holds {held}, the network {len(target.wanted)}."
    if nearest and (nearest.layout != OWN or nearest.prefix):
        what += f" The nearest layout is {nearest.layout}" + (
            f", below {nearest.prefix!r}." * bool(nearest.prefix) or "."
        )
    return UserError(f"{source} does not fit this network: {what}{prefix_hint(weights, target.wanted, source)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN]) + (f", … ({len(names)} in all)" if len(names) > MAX_SHOWN else "")
