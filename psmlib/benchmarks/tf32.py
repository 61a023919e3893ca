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
from psmlib.kernels.tf32 import bits_of, rounded


def cut(x: Tensor) -> Tensor:
    """float32 truncated to 10 mantissa bits, towards zero.

    Raises:
        ValueError: for another dtype.

    Example:
        >>> cut(torch.tensor([1 + 2**-10, 1 + 2**-11, -1 - 2**-11])).tolist()
        [1.0009765625, 1.0, -1.0]
    """
    return (bits_of(x) & ~0x1FFF).view(torch.float32)


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

    operand = staticmethod(rounded)


class CutMLP(BankMLP):
    """The networks with the operands of every product truncated; arguments as of the parent."""

    operand = staticmethod(cut)


class RoundedUpdates(BankUpdates):
    """Updates of a bank by :class:`RoundedMLP`: those of the fused kernels, up to the order of their sums."""

    network = RoundedMLP
