"""What training runs instead of the network: the compiled network, or one of several that learn together."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed
from utils.errors import UserError


def wrap_for_training(net: nn.Module, compiled: bool, device: torch.device) -> nn.Module | None:
    """Return `net` compiled, and under torchrun wrapped, so that the gradients are the mean over the processes.

    The weights stay those of `net`, under its own names. None means that training runs `net` itself.
    """
    train_net: Any = torch.compile(net) if compiled else net
    if distributed.world_size() > 1:
        gpus = [device.index] if device.type == "cuda" else None
        train_net = DistributedDataParallel(train_net, device_ids=gpus, gradient_as_bucket_view=False)
    return None if train_net is net else train_net


def convert_sync_batchnorm(net: nn.Module, device: torch.device) -> nn.Module:
    """Return `net` with batch norm over the batches of all processes (--sync_bn).

    Raises:
        UserError: on the CPU, for which torch has no such layer.
    """
    if distributed.world_size() == 1:
        return net
    if device.type == "cpu":
        raise UserError("--sync_bn is for GPUs: torch has no synchronised batch norm on the CPU. Leave it out.")
    from timm import layers

    return layers.convert_sync_batchnorm(net)
