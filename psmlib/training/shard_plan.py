r"""How a bank that may not fit is cut: what so many networks will need, and as few stretches of them as do fit.

What a stretch of networks will need is predicted before any is made; :mod:`psmlib.training.sharding` trains by the
plan.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.machine.memory import available
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.image_steps import STEPS
from psmlib.training.loop import fit
from psmlib.training.optim import OPTIMISERS

Make = Callable[[range], Bank | ImageBank]
"""Makes a stretch of a bank's networks, always of the same bank."""


@dataclass(frozen=True)
class Plan:
    """How a bank is cut.

    Attributes:
        size: Networks of the whole bank.
        stretches: Networks to train together, one stretch after another.
        needed: Bytes that each stretch is predicted to need at its peak, its networks included.
        budget: Bytes that it may need.
        device: Where.

    Example:
        >>> print(Plan(7, (range(4), range(4, 7)), (3 * 2**30, 2 * 2**30), 4 * 2**30, "cpu"))
        7 of 7 networks to train, in 2 stretches of at most 4: they need up to 3 GiB of the 4 GiB allowed on cpu
    """

    size: int
    stretches: tuple[range, ...]
    needed: tuple[int, ...]
    budget: float
    device: str

    def __str__(self) -> str:
        lengths = [len(stretch) for stretch in self.stretches]
        if not lengths:
            return f"0 of {self.size} networks to train"
        return (
            f"{sum(lengths)} of {self.size} networks to train, in {len(lengths)} "
            f"stretch{'es' * (len(lengths) > 1)} of at most {max(lengths)}: they need up to {gib(max(self.needed))} "
            f"of the {gib(self.budget)} allowed on {self.device}"
        )


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
        make: Makes a stretch of the bank's networks.
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
    one: Bank | ImageBank, data, process: Process, partition: Partition, settings: dict
) -> Callable[[int], int]:
    """:func:`predicted` as a function of the number of networks, by one of them."""
    given = inspect.signature(fit).bind(one, data, process, partition, **settings)
    given.apply_defaults()
    given, steps = given.arguments, STEPS[type(one)]
    optimiser, batch_size = given["optimiser"], given["batch_size"]
    if optimiser not in OPTIMISERS:
        raise ValueError(f"unknown optimiser {optimiser!r}: use one of {', '.join(OPTIMISERS)}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive whole number, got {batch_size!r}")
    step = steps(**{field.name: given.get(field.name) for field in fields(steps)})  # it needs no learning rate to plan
    own = sum(tensor.nbytes for tensor in one.tensors.values())
    return cache(lambda networks: networks * own + step.needed(networks, optimiser, given["workers"]))


def plan(
    make: Make, data, process: Process, partition: Partition, *,
    budget: float | None = None, rest: Sequence[range] | None = None, **settings,
) -> Plan:  # fmt: skip
    """Cuts a bank into as few stretches as fit, of nearly equal lengths.

    Args:
        make: As of :func:`predicted`; so are ``data``, ``process``, ``partition`` and ``settings``.
        budget: Bytes that a stretch may need; by default nine tenths of what the networks' device has free.
        rest: Stretches that are left to train; by default the whole.

    Raises:
        ValueError: as :func:`predicted` does.
        MemoryError: when not even one network fits.

    Example:
        >>> import torch
        >>> from psmlib.nets import unet
        >>> from psmlib.process import VP
        >>> make = lambda only: ImageBank(unet.small(dim=8), 7, only=only)
        >>> given = torch.zeros(9, 1, 8, 8), VP(), Partition.equal(7)
        >>> three = predicted(make, 3, *given, updates=9)
        >>> plan(make, *given, updates=9, budget=three).stretches
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
    stretches = []
    for gap in [range(one.whole)] if rest is None else rest:
        cuts = -(-len(gap) // most)
        borders = [gap.start + -(-len(gap) * i // cuts) for i in range(cuts + 1)]
        stretches += [range(*pair) for pair in zip(borders, borders[1:], strict=False)]
    return Plan(one.whole, tuple(stretches), tuple(needed(len(part)) for part in stretches), budget, str(one.device))
