"""Sharpness-aware minimisation (Foret et al., 2021): the gradient is taken where the loss nearby is highest.

pytorch_optimizer's SAM wraps an optimizer's class and needs a closure. This one works beside any optimizer that exists
already, such as Lookahead with its slow weights or Muon with its two kinds of group. `training.engine.Engine` calls
`update` a second time.
"""

import torch
from torch import Tensor, nn

from utils.tensors import clones


class SAM:
    """Algorithm 1 of the paper with p = 2.

    `ascend` to w + rho * g / |g|, take the gradient there, `restore` w, and step. `restore` also undoes what the second
    forward pass does to buffers, such as batch norm's running statistics.
    """

    def __init__(self, net: nn.Module, rho: float) -> None:
        self.net, self.rho = net, rho
        self._saved: list[tuple[Tensor, Tensor]] = []

    @property
    def perturbed(self) -> bool:
        """Return whether the weights are the perturbed ones."""
        return bool(self._saved)

    @torch.no_grad()
    def ascend(self) -> None:
        """Move from w to w + rho * g / |g|, |g| being the norm of the whole gradient, and clear the gradient."""
        moving: list[Tensor] = [parameter for parameter in self.net.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
        scale = self.rho / (torch.stack(torch._foreach_norm(gradients)).norm() + 1e-12)
        changing = [*moving, *self.net.buffers()]
        self._saved = list(zip(changing, clones(changing), strict=True))
        torch._foreach_mul_(gradients, scale)  # in place: they are not needed any more
        torch._foreach_add_(moving, gradients)
        for parameter in moving:
            parameter.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the weights, and the buffers as the first pass left them; the new gradient stays."""
        if self._saved:
            torch._foreach_copy_([tensor for tensor, _ in self._saved], [value for _, value in self._saved])
        self._saved = []
