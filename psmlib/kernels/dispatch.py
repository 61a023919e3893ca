"""Triton where it is installed, and the choice between a kernel's implementations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

try:
    import triton
    import triton.language as tl
except ImportError:  # every kernel has a reference in plain torch
    triton = tl = None


def jit(function: Callable) -> Callable:
    """``triton.jit``; without Triton the function as it is, so that its file can be imported and documented."""
    return function if triton is None else triton.jit(function)


@cache
def choose(what: str, device: str, reference: Callable, kernel: Callable, fits: bool = True) -> Callable:
    """The Triton kernel on CUDA, the reference elsewhere; each choice is logged once.

    Args:
        what: What is computed, in words.
        device: Type of the device.
        reference: The implementation in plain torch.
        kernel: The one in Triton.
        fits: Whether the kernel supports this request.

    Example:
        >>> choose("a sum", "cpu", sum, max) is sum
        True
    """
    chosen, by = reference, "torch operations"
    if device == "cuda" and fits:
        if triton is None:
            by += ", because Triton is not installed"
        else:
            chosen, by = kernel, "a Triton kernel"
    logging.getLogger("psmlib").info("%s on %s: %s", what, device, by)
    return chosen
