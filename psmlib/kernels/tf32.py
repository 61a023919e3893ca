"""Operands of tf32 products, the single precision of tensor cores: sides of tiles, rounding to ten bits of mantissa."""

from __future__ import annotations

import torch
from torch import Tensor


def tile_side(n: int) -> int:
    """The side of a tile of n rows or columns in a kernel: a power of two, 32 or more.

    With sides of 16 Triton 3.6 compiles products in tf32x3 to code that reads out of bounds.

    Example:
        >>> tile_side(100), tile_side(9)
        (128, 32)
    """
    return max(32, 1 << (n - 1).bit_length())


def rounded(x: Tensor) -> Tensor:
    """float32 rounded to the nearest number of 10 mantissa bits, ties away from zero.

    Raises:
        ValueError: for another dtype.

    Example:
        >>> rounded(torch.tensor([1 + 2**-10, 1 + 2**-12, 1 + 2**-11])).tolist()
        [1.0009765625, 1.0, 1.0009765625]
    """
    if x.dtype != torch.float32:
        raise ValueError(f"tf32 is a format of float32 numbers, got {x.dtype}: convert with .float()")
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
