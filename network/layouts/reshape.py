"""Tensors whose shape depends on the size or the colours of the images, carried over to another one."""

import math

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

COLOURS = 3


def reshaped(name: str, value: Tensor, wanted: Tensor, net: nn.Module, stem: str) -> Tensor | None:
    """Return `value` in the shape of `wanted`, or None where that would not mean the same.

    Args:
        stem: the name of the first convolution's weight.
    """
    if not value.is_floating_point() or not wanted.is_floating_point():
        return None
    if name == stem:
        return _stem(value, wanted)
    if name == "pos_embed":
        return _positions(value, wanted, net)
    if name.endswith(".relative_position_bias_table"):
        return _biases(value, wanted)
    return None


def _stem(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Return a first convolution for colours from one for grey images, which then sees their mean; or the reverse."""
    if value.ndim != 4 or value.shape[0] != wanted.shape[0] or value.shape[2:] != wanted.shape[2:]:
        return None
    if (value.shape[1], wanted.shape[1]) == (1, COLOURS):
        return value.float().repeat(1, COLOURS, 1, 1) / COLOURS
    if (value.shape[1], wanted.shape[1]) == (COLOURS, 1):
        return value.float().sum(dim=1, keepdim=True)
    return None


def _side(count: int) -> int | None:
    """Return the side of a square of `count` cells, None if there is none."""
    side = math.isqrt(count) if count > 0 else 0
    return side if side and side * side == count else None


def _positions(value: Tensor, wanted: Tensor, net: nn.Module) -> Tensor | None:
    """Return the position grid (1, N, C) of another size of image, by bicubic interpolation; both grids are square."""
    prefix = 0 if getattr(net, "no_embed_class", False) else int(getattr(net, "num_prefix_tokens", 1))
    if value.ndim != 3 or wanted.ndim != 3 or value.shape[::2] != wanted.shape[::2]:
        return None
    old, new = _side(value.shape[1] - prefix), _side(wanted.shape[1] - prefix)
    if old is None or new is None:
        return None
    return resample_abs_pos_embed(value.float(), [new, new], [old, old], num_prefix_tokens=prefix)


def _biases(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Return the relative position biases (N, heads) of another size of window; both windows are square."""
    if value.ndim != 2 or wanted.ndim != 2 or value.shape[1] != wanted.shape[1]:
        return None
    old, new = _side(value.shape[0]), _side(wanted.shape[0])
    if old is None or new is None or old % 2 == 0 or new % 2 == 0:
        return None
    found: Tensor = resize_rel_pos_bias_table(value.float(), ((new + 1) // 2,) * 2, tuple(wanted.shape))
    return found if found.shape == wanted.shape else None


def first_convolution(net: nn.Module) -> str:
    """Return the name of the first convolution's weight, "" without one."""
    return next((f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), "")


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have one shape, and hold the same kind of number."""
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point() and one.dtype != torch.bool
