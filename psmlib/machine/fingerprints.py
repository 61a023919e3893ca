"""Short digests of tensors and settings, by which files know what they belong to."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(*parts, digits: int | None = None) -> str:
    """Sixteen hexadecimal digits that tell tensors, numbers and texts from others.

    Args:
        *parts: Tensors of any shape and dtype, numbers, texts.
        digits: Decimals to which floats in tensors are rounded, where processors compute the last ones differently.

    Example:
        >>> digest(torch.zeros(2), "a") == digest(torch.zeros(2), "a") != digest(torch.zeros(2, 1), "a")
        True
    """
    found = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Tensor):
            found.update(repr(part).encode())
            continue
        add(found, part, digits=digits)
    return found.hexdigest()[:16]


def add(found, tensor: Tensor, label: str = "", digits: int | None = None) -> None:
    """Adds a tensor to a digest of hashlib: its label, dtype, shape and numbers, rounded as of :func:`digest`."""
    numbers = tensor.detach().cpu().contiguous()
    found.update(f"\0{label}{numbers.dtype} {tuple(numbers.shape)}\0".encode())
    if digits is not None and numbers.is_floating_point():
        numbers = numbers.double().mul(10.0**digits).round().long()
    found.update(numbers.reshape(-1).view(torch.uint8).numpy())
