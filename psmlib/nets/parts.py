"""Parts of a bank: stretches of its networks that are made, trained and kept by themselves, and put together again."""

from __future__ import annotations

from collections.abc import Iterable


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
        >>> from psmlib.nets.bank import Bank
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
