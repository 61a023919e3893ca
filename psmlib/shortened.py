"""A shorter diffusion: the same process stopped at T, and the blocks and networks that are left of it.

Franzese et al. (*How Much Is Enough?*, Appendix K.3) leave the equation as it is, train on times up to T and start the
reverse process at T. With a partition that means dropping blocks: those kept are trained as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from psmlib.gaussian_path import Process
from psmlib.nets.bank import Bank
from psmlib.nets.image_bank import ImageBank
from psmlib.partition import Partition


@dataclass(frozen=True)
class Shortened(Process):
    r"""The coefficients of a process on [0, T] alone.

    Its prior is the process's own at T: where there is a drift, the law that it settles to, N(0, I) for VP; where there
    is none, :math:`N(0, \sigma^2(T) I)`, with :math:`\sigma(0)` subtracted (Franzese et al., Table 1).

    Args:
        process: The process; of one that was shortened before, the original is taken.
        T: The new end.

    Raises:
        ValueError: when T lies outside (0, process.T].

    Example:
        >>> from psmlib.process import VE, VP
        >>> Shortened(VP(0., 10.), .4)
        Shortened(process=VP(beta_min=0.0, beta_max=10.0), T=0.4)
        >>> Shortened(VP(), .4).prior_std, round(Shortened(VE(.01, 100.), .5).prior_std, 2)
        (1.0, 1.0)
        >>> Shortened(VP(), 1.5)
        Traceback (most recent call last):
        ...
        ValueError: T = 1.5 lies outside (0, 1], where VP(beta_min=0.1, beta_max=20.0) runs: give a time within it
    """

    process: Process
    T: float = math.nan  # no default: it hides the property of Process, and is refused below

    def __post_init__(self):
        if not 0 < self.T <= self.process.T:
            raise ValueError(
                f"T = {self.T:g} lies outside (0, {self.process.T:g}], where {self.process} runs: give a time within it"
            )
        object.__setattr__(self, "T", float(self.T))
        if isinstance(self.process, Shortened):
            object.__setattr__(self, "process", self.process.process)

    @property
    def prior_std(self) -> float:
        return self.process.prior_std if float(self.drift(self.T)) else float(self.sigma(self.T))

    @property
    def prior_std_rate(self) -> float:
        """How fast the standard deviation of the prior grows with T."""
        return 0.0 if float(self.drift(self.T)) else float(self.sigma_rate(self.T))

    def alpha(self, t):
        return self.process.alpha(t)

    def sigma(self, t):
        return self.process.sigma(t)

    def alpha_rate(self, t):
        return self.process.alpha_rate(t)

    def sigma_rate(self, t):
        return self.process.sigma_rate(t)

    def drift(self, t):
        return self.process.drift(t)

    def diffusion2(self, t):
        return self.process.diffusion2(t)

    def time_of_sigma(self, sigma):
        """The time at which the noise level is ``sigma``; past T for a level that is not reached."""
        return self.process.time_of_sigma(sigma)


def _blocks(partition: Partition, T: float) -> int:
    """How many blocks end at or before T, an edge."""
    if not 0 < T <= partition.T * (1 + 1e-12):
        raise ValueError(f"T = {T:g} lies outside (0, {partition.T:g}], which {partition!r} covers: cut within it")
    near = [k for k, edge in enumerate(partition.edges) if abs(edge - T) <= 1e-12 * T]
    if not near:
        left = [e for e in partition.edges[1:] if e < T][-1:]
        right = next(e for e in partition.edges if e > T)
        choice = " or ".join(f"{e:g}" for e in [*left, right])
        raise ValueError(f"T = {T:g} is no edge of {partition!r}: cut it at {choice}")
    return near[0]


def cut(partition: Partition, T: float) -> Partition:
    """The blocks up to T; those beyond are dropped.

    Args:
        partition: Blocks or points.
        T: One of its edges.

    Raises:
        ValueError: when T is no edge; a network cannot be cut in two.

    Example:
        >>> cut(Partition([0, .02, .1, .3, 1]), .3)
        Partition(3 blocks: 0, 0.02, 0.1, 0.3)
        >>> cut(Partition([0, .1, 1]), .3)
        Traceback (most recent call last):
        ...
        ValueError: T = 0.3 is no edge of Partition(2 blocks: 0, 0.1, 1): cut it at 0.1 or 1
    """
    return Partition(partition.edges[: _blocks(partition, T) + 1], discrete=partition.discrete)


def kept(bank: Bank | ImageBank, partition: Partition, T: float) -> Bank | ImageBank:
    """The networks of the blocks up to T, copied: a whole bank for ``cut(partition, T)``.

    A network's course depends on its seed, its number and its block alone, so these are the networks that training on
    the blocks kept would have made.

    Args:
        bank: As many networks as the partition has blocks.
        partition: The blocks that it was trained on.
        T: One of their edges.

    Raises:
        ValueError: when the two do not fit, or T is no edge.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> blocks = Partition([0, .1, .4, 1])
        >>> short = kept(Bank(Plain(), 3), blocks, .4).score(cut(blocks, .4), Shortened(VP(), .4))
        >>> len(short.bank), short.process.T
        (2, 0.4)
    """
    if bank.whole != len(bank) or len(bank) != len(partition):
        raise ValueError(
            f"the bank holds {len(bank)} of {bank.whole} networks but {partition!r} has {len(partition)} blocks: "
            "give the whole bank and the blocks that it was trained on"
        )
    count = _blocks(partition, T)
    part = bank.copy(**{name: rows[:count] for name, rows in bank.tensors.items()})
    part.whole = count
    return part
