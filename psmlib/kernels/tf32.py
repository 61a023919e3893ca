"""tf32, the precision of single-precision products on tensor cores: on or off, rounding to ten bits, tile sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
    return ((bits_of(x) + 0x1000) & ~0x1FFF).view(torch.float32)


def bits_of(x: Tensor) -> Tensor:
    """float32 numbers as int32, whose last 13 bits tf32 leaves out."""
    if x.dtype != torch.float32:
        raise ValueError(f"tf32 is a format of float32 numbers, got {x.dtype}: convert with .float()")
    return x.view(torch.int32)


@contextmanager
def product_precision(name: str, backends: Iterable = (torch.backends.cuda.matmul,)) -> Iterator[None]:
    """Within it, single-precision products of the backends have the precision ``name``: "ieee" or "tf32"."""
    before = [(each, each.fp32_precision) for each in backends]
    try:
        for each, _ in before:
            each.fp32_precision = name
        yield
    finally:
        for each, kept in before:
            each.fp32_precision = kept
