"""The recipe of a training run: everything that decides what is learnt, checked once and able to describe itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from psmlib.machine.checks import check_choice, check_count, plain
from psmlib.machine.fingerprints import digest
from psmlib.partition import Partition
from psmlib.process import Process
from psmlib.training.objectives import OBJECTIVES, Denoising, FlowMatching
from psmlib.training.optim import OPTIMISERS, SCHEDULES
from psmlib.training.times import Uniform


@dataclass(frozen=True)
class Recipe:
    """How networks are trained; the defaults recover Parallel Score Matching, Appendix H.

    How fast that is done (engine, threads) and where it is kept are no part of it.

    Attributes:
        process: The Gaussian path.
        partition: A block for each network, covering [0, T].
        updates: Steps of the optimiser per network.
        objective: ``Denoising()`` or ``FlowMatching()``.
        times: When within its block a network is trained; see :mod:`psmlib.training.times`.
        batch_size: Points per step and network.
        lr: Learning rate (the peak, for "one_cycle").
        seed: Network k draws from streams that depend on (seed, k) alone.
        optimiser: "adam" or "soap".
        schedule: "constant" or "one_cycle".
        ema: Decay of the exponential moving average per step, or None.

    Raises:
        ValueError: for a setting that is out of range, or blocks that do not cover the process.

    Example:
        >>> from psmlib.process import VP
        >>> Recipe(VP(0., 10.), Partition([0, .1, 1]), updates=50, lr=-1.)
        Traceback (most recent call last):
        ...
        ValueError: lr must be positive, got -1.0
    """

    process: Process
    partition: Partition
    updates: int
    objective: Denoising | FlowMatching = Denoising()
    times: Uniform = Uniform()
    batch_size: int = 512
    lr: float = 1e-3
    seed: int = 0
    optimiser: str = "adam"
    schedule: str = "constant"
    ema: float | None = None

    def __post_init__(self):
        for field in fields(self):  # NumPy's numbers would not be those of a checkpoint
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        self.partition.check_covers(self.process)
        for name in ("updates", "batch_size"):
            check_count(name, getattr(self, name))
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, got {self.lr!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie in (0, 1) or be None, got {self.ema!r}")
        if not hasattr(self.times, "draw"):
            raise ValueError(f"times must be a class of psmlib.training.times, such as Uniform(), got {self.times!r}")
        for name, known in (("schedule", SCHEDULES), ("optimiser", OPTIMISERS)):
            check_choice(name, getattr(self, name), known)

    @classmethod
    def of(cls, bank, process: Process, partition: Partition, settings: dict) -> tuple[Recipe, dict]:
        """The recipe among the settings of :func:`psmlib.training.fit`, checked for a bank, and the other settings.

        Without an ``objective`` it is the bank's own.

        Raises:
            ValueError: when a setting is out of range or does not fit the bank.
        """
        own = {field.name for field in fields(cls)}
        mine = {name: value for name, value in settings.items() if name in own}
        mine["objective"] = mine.get("objective") or OBJECTIVES[bank.native]
        recipe = cls(process, partition, **mine)
        recipe.check(bank)
        return recipe, {name: value for name, value in settings.items() if name not in own}

    def check(self, bank) -> None:
        """Raises ValueError unless the bank's networks can be trained so."""
        if bank.whole != (blocks := len(self.partition)):
            raise ValueError(f"the bank holds {bank.whole} networks but {self.partition!r} has {blocks} blocks")
        if self.objective.native != bank.native:
            raise ValueError(
                f"{type(self.objective).__name__} trains {self.objective.native!r} but the bank predicts "
                f"{bank.native!r}: make it with {type(bank).__name__}(..., native={self.objective.native!r})"
            )
        if self.optimiser == "soap" and not bank.widths:
            raise ValueError('SOAP works on the matrices of MLPs: train image networks with optimiser="adam"')

    @property
    def rate(self) -> Callable[[int], float]:
        """The learning rate of update i, counted from 0."""
        return SCHEDULES[self.schedule](self.lr, self.updates)

    def describe(self, bank, data) -> dict:
        """What tells a run from others that cannot go on from it, as checkpoints remember it.

        Example:
            >>> from psmlib.bank.mlp_bank import Bank
            >>> from psmlib.data.toys import HG
            >>> from psmlib.nets.mlp import Plain
            >>> from psmlib.process import VP
            >>> Recipe(VP(), Partition([0, .1, 1]), updates=50).describe(Bank(Plain(), 2), HG())["times"]
            'Uniform()'
        """
        return {
            "arch": bank.description, "process": repr(self.process), "edges": list(self.partition.edges),
            "discrete": self.partition.discrete, "objective": type(self.objective).__name__,
            "times": repr(self.times), "batch_size": self.batch_size, "lr": self.lr, "seed": self.seed,
            "optimiser": self.optimiser, "schedule": self.schedule, "ema": self.ema,
            "dtype": str(bank.params.dtype), "data": name_of(data),
            "networks": len(bank) if bank.whole == len(bank) else [bank.first, len(bank), bank.whole],
            "schedule_updates": self.updates if self.schedule != "constant" else None,
        }  # fmt: skip


def name_of(data) -> str:
    """What a checkpoint remembers of the data: what they are, and a digest of what they hold, or else of some draws.

    Example:
        >>> from psmlib.data.toys import HG
        >>> name_of(torch.zeros(3, 2)) == name_of(torch.ones(3, 2)), name_of(HG()) == name_of(HG().centred())
        (False, True)
    """
    if isinstance(data, Tensor):
        return f"{tuple(data.shape)} points {digest(data)}"
    name = getattr(data, "name", type(data).__name__)
    found = getattr(data, "fingerprint", None)
    if found is None:
        draw = data.sample if hasattr(data, "sample") else data
        found = digest(draw(16, torch.Generator().manual_seed(0)))
    return f"{name} {found}"
