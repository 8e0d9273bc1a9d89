"""Sharpness-aware minimisation (Foret et al., 2021): the gradient is taken where the loss nearby is highest.

pytorch_optimizer's SAM wraps an optimizer's class and wants a closure; this one stands before any optimizer that is built
already (Lookahead's slow weights, Muon's two kinds of group), and `BaseModel.step` calls the update a second time.
"""

import torch
from torch import Tensor, nn


class Sam:
    """Algorithm 1 of the paper with p = 2: `climb` to w + rho * g / |g|, take the gradient there, come `back` to w, and step.

    What the second forward pass does to buffers, such as batch norm's running statistics, is undone by `back`.
    """

    def __init__(self, net: nn.Module, rho: float) -> None:
        self.net, self.rho = net, rho
        self.home: list[tuple[Tensor, Tensor]] = []

    @property
    def away(self) -> bool:
        """Whether the weights are the perturbed ones."""
        return bool(self.home)

    @torch.no_grad()
    def climb(self) -> None:
        """Go from w to w + rho * g / |g|, |g| being the norm of the whole gradient, and clear the gradient."""
        moving = [parameter for parameter in self.net.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
        scale = self.rho / (torch.stack(torch._foreach_norm(gradients)).norm() + 1e-12)
        self.home = [(tensor, tensor.clone()) for tensor in (*moving, *self.net.buffers())]
        for parameter, gradient in zip(moving, gradients, strict=True):
            parameter.add_(gradient * scale)
            parameter.grad = None

    @torch.no_grad()
    def back(self) -> None:
        """Return the weights, and the buffers as the first pass left them; the new gradient stays."""
        for tensor, value in self.home:
            tensor.copy_(value)
        self.home = []
