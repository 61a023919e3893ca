"""Timing on machines that are never quiet: contestants take turns, and are compared turn by turn."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from psmlib.machine.memory import HeldBytes

LEVELS = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    Attributes:
        case: Data, method and size, in words.
        method: Who did it.
        measure: What was measured.
        unit: Its unit.
        runs: Timed runs behind the quantiles.
        values: Quantiles at 20, 50 and 80 %; a figure that is not a timing is the middle one alone.
        ratios: The same of the ratio to the baseline, larger being better; None where there is none.
        warm_up: Seconds of the warm-up, which is not in the quantiles.
        note: One sentence for the reader.
    """

    case: str
    method: str
    measure: str
    unit: str
    runs: int
    values: tuple[float | None, float | None, float | None]
    ratios: tuple[float | None, float | None, float | None] = (None, None, None)
    warm_up: float | None = None
    note: str = ""

    @classmethod
    def single(cls, case: str, method: str, measure: str, unit: str, value: float, *, ratio=None, note="") -> Row:
        """A row for a figure that is not a timing."""
        return cls(case, method, measure, unit, 1, (None, value, None), (None, ratio, None), None, note)


@dataclass(frozen=True)
class Times:
    """Seconds of the warm-up and of each timed turn."""

    warm_up: float
    seconds: tuple[float, ...]


def clock_of(device: str | torch.device) -> Callable[[], float]:
    """Seconds that are right for a device: what it was given to do is done before they are read.

    Example:
        >>> clock_of("cpu") is time.perf_counter
        True
    """
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def work_space(
    call: Callable[[int], object], device: str | torch.device, *, known: Iterable[torch.Tensor] = (),
    reserved: bool = False,
) -> tuple[float, str]:  # fmt: skip
    """Most bytes that a call holds beside what was there before, and how they were counted.

    Args:
        call: Called once, with round 1.
        device: Where it works.
        known: Tensors that were there before (on a CPU).
        reserved: Count what the allocator keeps, since a CUDA graph keeps its work space to itself.

    Example:
        >>> x = torch.zeros(1000)
        >>> work_space(lambda i: x + 1, "cpu", known=[x])[0]
        4000
    """
    if torch.device(device).type != "cuda":
        with HeldBytes(*known) as held:
            call(1)
        return held.peak, "tensors made by the call"
    kind = "reserved" if reserved else "allocated"
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = getattr(torch.cuda, f"memory_{kind}")(device)
    call(1)
    torch.cuda.synchronize(device)
    return getattr(torch.cuda, f"max_memory_{kind}")(device) - before, f"memory {kind} on the device by the call"


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles, between neighbours by straight lines.

    Example:
        >>> quantiles([0., 1., 2., 3., 4., 5.])
        (1.0, 2.5, 4.0)
    """
    return tuple(float(q) for q in np.quantile(np.asarray(values, float), LEVELS))


def interleave(
    calls: Mapping[str, Callable[[int], object]], rounds: int, clock: Callable[[], float] = time.perf_counter,
    *, shuffle: int | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Times contestants that take turns: a, b, a, b, ... so that a busy minute of the machine hits all alike.

    Args:
        calls: Contestants; each is handed the number of the round, and round 0 is the warm-up.
        rounds: Timed rounds.
        clock: Seconds from some fixed moment.
        shuffle: Seed of an order drawn anew each round, so that no contestant always finds the caches as one and the
            same other has left them; by default the order stays.

    Raises:
        ValueError: when there is no timed round.

    Example:
        >>> times = interleave({"a": lambda i: None, "b": lambda i: sum(range(10000))}, 3)
        >>> len(times["a"].seconds), speed_up(times["a"], times["b"])[1] < 1
        (3, True)
    """
    if rounds < 1:
        raise ValueError(f"rounds must be a positive whole number, got {rounds!r}")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, chance = list(calls), random.Random(shuffle)
    for i in range(rounds + 1):
        if shuffle is not None:
            chance.shuffle(order)
        for name in order:
            began = clock()
            calls[name](i)
            taken[name].append(clock() - began)
    return {name: Times(seconds[0], tuple(seconds[1:])) for name, seconds in taken.items()}


def speed_up(baseline: Times, other: Times) -> tuple[float, float, float]:
    """Quantiles over the rounds of baseline seconds / other seconds: how many times as fast the other is.

    Raises:
        ValueError: when they did not take the same number of turns.
    """
    return quantiles([a / b for a, b in zip(baseline.seconds, other.seconds, strict=True)])


def rows(
    case: str, times: Mapping[str, Times], baseline: str, notes: Mapping[str, str], *, work: float, measure: str
) -> Iterator[Row]:
    """A row for each contestant: its rate, and how many times that of the baseline it is.

    Args:
        case: What they all did.
        times: Contestants, from :func:`interleave`.
        baseline: The one that the others are compared with.
        notes: A sentence for each.
        work: How much is done in a turn.
        measure: What the rate is called.
    """
    for name, each in times.items():
        values = quantiles([work / seconds for seconds in each.seconds])
        ratios = speed_up(times[baseline], each)
        yield Row(case, name, measure, "1/s", len(each.seconds), values, ratios, each.warm_up, notes.get(name, ""))


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds torch to one thread within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def number(value: float | None, digits: int = 4) -> str:
    """A figure for a table or a file; nothing for None and for what is not finite.

    Example:
        >>> number(12345.67), number(.00012346), number(None), number(7.0)
        ('12346', '0.0001235', '', '7')
    """
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
