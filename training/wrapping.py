"""What training runs in the network's place: the network compiled, or one of several that learn together."""

import argparse
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.errors import UserError


def run_by(net: nn.Module, opt: argparse.Namespace, device: torch.device) -> nn.Module | None:
    """`net` compiled (--compile), and under torchrun wrapped, so that the gradients are the mean over the processes.

    The weights stay those of `net`, under its own names. None where `net` itself does.
    """
    runner: Any = torch.compile(net) if opt.compile else net
    if distributed.world_size() > 1:
        cards = [device.index] if device.type == "cuda" else None
        runner = DistributedDataParallel(runner, device_ids=cards, gradient_as_bucket_view=False)
    return None if runner is net else runner


def share_norm(net: nn.Module, opt: argparse.Namespace, device: torch.device) -> nn.Module:
    """With --sync_bn and several processes, `net` with batch norm over the batches of all of them.

    Raises:
        UserError: on the CPU, for which torch has no such layer.
    """
    if not opt.sync_bn or distributed.world_size() == 1:
        return net
    if device.type == "cpu":
        raise UserError("--sync_bn is for CUDA cards: torch has no synchronised batch norm on the CPU. Leave it out.")
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(net)
