"""A bank as one stack: which of its networks a part holds, and where tensors lie in a network's row.

Each tensor begins at a multiple of eight numbers, so of 16 bytes in any precision: kernels of accelerators read that
much at a time, and stop with an error at a weight that lies between. The gaps hold zeros and stay so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def stretch(size: int, only: range | None, name: str) -> range:
    """The networks of a part of a bank of ``size``: all of them by default.

    Args:
        size: Networks of the whole bank.
        only: Those of the part, or None.
        name: Of the bank's class, for the message.

    Raises:
        ValueError: when size is not positive, or ``only`` names none of the networks.

    Example:
        >>> stretch(5, range(2, 4), "Bank"), stretch(5, None, "Bank")
        (range(2, 4), range(0, 5))
    """
    if size < 1:
        raise ValueError(f"{name} needs at least one network, got size={size}")
    only = range(size) if only is None else only
    if not only or only.step != 1 or not 0 <= only.start < only.stop <= size:
        raise ValueError(f"only={only} is no stretch of the {size} networks: give a range within 0..{size}")
    return only


def in_order(parts: Iterable) -> list:
    """The parts of one bank, sorted.

    Args:
        parts: Banks that were made alike but for ``only``.

    Raises:
        ValueError: when they are not all the parts of one bank.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> [len(part) for part in in_order(Bank(Plain(), 3, only=part) for part in (range(2, 3), range(2)))]
        [2, 1]
    """
    parts = sorted(parts, key=lambda part: part.first)
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    kinds = {(part.description, part.native, part.seed, part.params.dtype, part.whole) for part in parts}
    if [part.first for part in parts] != starts[:-1] or len(kinds) != 1 or starts[-1] != parts[0].whole:
        found = [(part.first, len(part)) for part in parts]
        raise ValueError(f"the parts (first, size) = {found} do not make one bank: give each part of one bank once")
    return parts


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
