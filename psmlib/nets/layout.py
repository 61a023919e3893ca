"""Where the tensors of a network lie in a row of a bank.

Each begins at a multiple of eight numbers, so of 16 bytes in any precision: kernels of accelerators read that much at a
time, and stop with an error at a weight that lies between. What is left free in between holds zeros and stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

STEP = 8
"""Numbers that places are multiples of."""


def places(tensors: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Each tensor and where its numbers begin in a row.

    Example:
        >>> import torch
        >>> [at for at, _ in places([torch.zeros(3), torch.zeros(2, 5), torch.zeros(1)])]
        [0, 8, 24]
    """
    at = 0
    for tensor in tensors:
        yield at, tensor
        at += -(-tensor.numel() // STEP) * STEP


def room(tensors: Iterable[Tensor]) -> int:
    """Numbers of a row that holds them.

    Example:
        >>> import torch
        >>> room([torch.zeros(3), torch.zeros(2, 5), torch.zeros(1)]), room([])
        (32, 0)
    """
    return sum(-(-tensor.numel() // STEP) * STEP for tensor in tensors)
