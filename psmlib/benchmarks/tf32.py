r"""The tf32 arithmetic of tensor cores, imitated on any device: operands of products rounded to ten bits of mantissa.

The fused updates compute their products in tf32, whose operands keep 10 of 23 bits of the mantissa, while sums keep
all of them. To see on a CPU whether that hurts training, :class:`RoundedMLP` is the bank's network with every operand
of its products rounded so, and :class:`RoundedUpdates` an engine for ``fit``. Tensor cores themselves truncate
(:class:`CutMLP`); then errors have one sign and add up, and the gradient of a bank is several times less accurate. So
the fused kernels round the numbers that they store for the tensor cores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP
from psmlib.kernels.bank_updates import BankUpdates
from psmlib.kernels.tf32 import rounded


def cut(x: Tensor) -> Tensor:
    """float32 truncated to 10 mantissa bits, towards zero.

    Raises:
        ValueError: for another dtype.

    Example:
        >>> cut(torch.tensor([1 + 2**-10, 1 + 2**-11, -1 - 2**-11])).tolist()
        [1.0009765625, 1.0, -1.0]
    """
    if x.dtype != torch.float32:
        raise ValueError(f"tf32 is a format of float32 numbers, got {x.dtype}: convert with .float()")
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


class RoundedMLP(BankMLP):
    """The networks with the operands of every product rounded; arguments as of the parent.

    Example:
        >>> from psmlib.kernels.bank_mlp import parameter_count
        >>> widths, h = [4, 8, 2], torch.randn(3, 16, 4)
        >>> flat = torch.randn(3, parameter_count(widths))
        >>> gap = (RoundedMLP(widths, h).forward(flat, h) - BankMLP(widths, h).forward(flat, h)).abs().max()
        >>> 0 < float(gap) < .05
        True
    """

    held = staticmethod(rounded)
    """The rounding of an operand."""

    def forward(self, flat: Tensor, h: Tensor) -> Tensor:
        stack = self._layers(flat)
        for i, (weight, bias) in enumerate(stack):
            h = torch.baddbmm(bias, self.held(h), self.held(weight), out=self._act[i])
            if i < len(stack) - 1:
                e = torch.clamp(h, max=0, out=self._slope[i]).exp_()
                h.clamp_(min=0).add_(e).sub_(1)
        return h

    def gradient(self, flat: Tensor, h: Tensor, target: Tensor, grad: Tensor) -> Tensor:
        inputs = [h, *self._act[:-1]]
        delta = self.forward(flat, h) - target
        loss = delta.square().mean((1, 2))
        delta = delta * (2 / (target.shape[1] * target.shape[2]))
        stack, grads = self._layers(flat), self._layers(grad)
        for i in range(len(stack) - 1, -1, -1):
            torch.bmm(self.held(inputs[i].contiguous()).mT, self.held(delta), out=grads[i][0])
            torch.sum(delta, 1, keepdim=True, out=grads[i][1])
            if i:
                delta = torch.bmm(self.held(delta), self.held(stack[i][0].contiguous()).mT).mul_(self._slope[i - 1])
        return loss


class CutMLP(RoundedMLP):
    """The networks with the operands of every product truncated; arguments as of the parent."""

    held = staticmethod(cut)


class RoundedUpdates(BankUpdates):
    """Updates of a bank by :class:`RoundedMLP`: those of the fused kernels, up to the order of their sums."""

    network = RoundedMLP
    weighs = False
