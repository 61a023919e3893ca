"""Predicts memory and splits a bank into the fewest groups of networks that fit; ``sharding`` trains by the plan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from psmlib.bank.stack import NetworkStack
from psmlib.machine.memory import available
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.loop import STEPS
from psmlib.training.recipe import Recipe

Make = Callable[[range], NetworkStack]
"""Makes a group of a bank's networks, always of the same bank."""


@dataclass(frozen=True)
class Plan:
    """How a bank is cut.

    Attributes:
        size: Networks of the whole bank.
        groups: Networks to train together, one group after another.
        needed: Bytes that each group is predicted to need at its peak, its networks included.
        budget: Bytes that it may need.
        device: Where.

    Example:
        >>> print(Plan(7, (range(4), range(4, 7)), (3 * 2**30, 2 * 2**30), 4 * 2**30, "cpu"))
        7 of 7 networks to train, in 2 groups of at most 4: they need up to 3 GiB of the 4 GiB allowed on cpu
    """

    size: int
    groups: tuple[range, ...]
    needed: tuple[int, ...]
    budget: float
    device: str

    def __str__(self) -> str:
        lengths = [len(group) for group in self.groups]
        if not lengths:
            return f"0 of {self.size} networks to train"
        groups = f"{len(lengths)} group{'s' * (len(lengths) > 1)} of at most {max(lengths)}"
        need = f"they need up to {gib(max(self.needed))} of the {gib(self.budget)} allowed on {self.device}"
        return f"{sum(lengths)} of {self.size} networks to train, in {groups}: {need}"


def gib(size: float) -> str:
    """Bytes in words.

    Example:
        >>> gib(3 * 2**29)
        '1.5 GiB'
    """
    return f"{size / 2**30:.3g} GiB"


def predicted(make: Make, networks: int, data, process: Process, partition: Partition, **settings) -> int:
    """Bytes for making so many networks of a bank and training them with :func:`psmlib.training.loop.fit`, at the peak.

    Counted are parameters, gradients, the optimiser's moments, moving average, the copy to go back to, a chunk of
    batches, and what a step holds; not the data, and not what the libraries of a device take for themselves.

    Args:
        make: Makes a group of the bank's networks.
        networks: How many.
        data: As of ``fit``; so are the others.
        process: The Gaussian path.
        partition: The blocks of the whole bank.
        **settings: As of ``fit``.

    Raises:
        ValueError: for an unknown optimiser, or a batch size that is not positive.
        MemoryError: when not even the parameters of one network fit.

    Example:
        >>> import torch
        >>> from psmlib.bank.image_bank import ImageBank
        >>> from psmlib.nets import unet
        >>> from psmlib.process import VP
        >>> make = lambda only: ImageBank(unet.small(dim=8), 3, only=only)
        >>> given = torch.zeros(9, 1, 8, 8), VP(), Partition.equal(3)
        >>> one, two = (predicted(make, k, *given, updates=9, batch_size=4) for k in (1, 2))
        >>> two - one == 5 * 50512 * 4                   # parameters, a copy to go back to, gradients, two moments
        True
    """
    return _prediction(make(range(1)), data, process, partition, settings)(networks)


def _prediction(
    one: NetworkStack, data, process: Process, partition: Partition, settings: dict
) -> Callable[[int], int]:
    """:func:`predicted` as a function of the number of networks, by one of them."""
    recipe, how = Recipe.of(one, process, partition, settings)
    steps, workers = STEPS[type(one)](one, data, recipe, how.get("engine", "auto")), how.get("workers", 1)
    own = sum(tensor.nbytes for tensor in one.tensors.values())
    return cache(lambda networks: networks * own + steps.needed(networks, workers))


def plan(
    make: Make, data, process: Process, partition: Partition, *,
    budget: float | None = None, rest: Sequence[range] | None = None, **settings,
) -> Plan:  # fmt: skip
    """Cuts a bank into as few groups as fit, of nearly equal lengths.

    Args:
        make: As of :func:`predicted`; so are ``data``, ``process``, ``partition`` and ``settings``.
        budget: Bytes that a group may need; by default nine tenths of what the networks' device has free.
        rest: Groups that are left to train; by default the whole.

    Raises:
        ValueError: as :func:`predicted` does.
        MemoryError: when not even one network fits.

    Example:
        >>> import torch
        >>> from psmlib.bank.image_bank import ImageBank
        >>> from psmlib.nets import unet
        >>> from psmlib.process import VP
        >>> make = lambda only: ImageBank(unet.small(dim=8), 7, only=only)
        >>> given = torch.zeros(9, 1, 8, 8), VP(), Partition.equal(7)
        >>> three = predicted(make, 3, *given, updates=9)
        >>> plan(make, *given, updates=9, budget=three).groups
        (range(0, 3), range(3, 5), range(5, 7))
    """
    one = make(range(1))
    budget = 0.9 * available(one.device) if budget is None else budget
    needed = _prediction(one, data, process, partition, settings)
    most = bisect_right(range(1, one.whole + 1), budget, key=needed)
    if not most:
        raise MemoryError(
            f"training one network needs about {gib(needed(1))} but "
            f"{gib(budget)} are allowed on {one.device}: use a smaller batch or another device"
        )
    groups = []
    for gap in [range(one.whole)] if rest is None else rest:
        cuts = -(-len(gap) // most)
        borders = [gap.start + -(-len(gap) * i // cuts) for i in range(cuts + 1)]
        groups += [range(*pair) for pair in zip(borders, borders[1:], strict=False)]
    return Plan(one.whole, tuple(groups), tuple(needed(len(part)) for part in groups), budget, str(one.device))
