"""The book's small network as an ordinary ``nn.Sequential``, the baseline of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from psmlib.kernels.bank_mlp import layers


def sequential(flat: Tensor, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ``nn.ELU`` between them, holding a copy of one network of a bank.

    Args:
        flat: Parameters of one network. Shape: (P,).
        widths: Layer widths, input first.

    Example:
        >>> from psmlib.kernels.bank_mlp import bank_mlp_ref
        >>> flat, h = torch.randn(4 * 8 + 8 + 8 * 2 + 2), torch.randn(5, 4)
        >>> net = sequential(flat, [4, 8, 2])
        >>> torch.allclose(net(h), bank_mlp_ref(flat[None], [4, 8, 2], h[None])[0], atol=1e-6)
        True
    """
    modules = []
    for weight, bias in layers(flat, widths):
        linear = nn.Linear(*weight.shape, dtype=flat.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight.mT)
            linear.bias.copy_(bias[0])
        modules += [linear, nn.ELU()]
    return nn.Sequential(*modules[:-1])
