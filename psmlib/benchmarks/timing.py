"""Time and memory of contestants on a shared machine: they take turns and are compared turn by turn."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from psmlib.machine.checks import check_count
from psmlib.machine.memory import HeldBytes

LEVELS = (0.2, 0.5, 0.8)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """What the settings of a benchmark that also runs on an accelerator have in common.

    Attributes:
        rounds: Timed turns of each contestant.
        device: Where they work.
    """

    rounds: int = 7
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    Attributes:
        case: Data, method and size, in words.
        method: The implementation measured.
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

    @classmethod
    def timed(
        cls, case: str, method: str, measure: str, unit: str, times: Times, value: Callable[[float], float],
        *, ratios: tuple = (None, None, None), note: str = "",
    ) -> Row:  # fmt: skip
        """A row of the quantiles of ``value``, a function of the seconds of a turn.

        Example:
            >>> Row.timed("TY", "ours", "rate", "1/s", Times(9.0, (0.5, 0.5)), lambda seconds: 1 / seconds).values
            (2.0, 2.0, 2.0)
        """
        values = quantiles([value(seconds) for seconds in times.seconds])
        return cls(case, method, measure, unit, len(times.seconds), values, ratios, times.warm_up, note)


@dataclass(frozen=True)
class Times:
    """Seconds of the warm-up and of each timed turn."""

    warm_up: float
    seconds: tuple[float, ...]


def clock_of(device: str | torch.device) -> Callable[[], float]:
    """A clock for work on a device; it waits until the device has finished.

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
    call: Callable[[], object], device: str | torch.device, *, known: Iterable[torch.Tensor] = (),
    reserved: bool = False,
) -> tuple[int, str]:  # fmt: skip
    """Most bytes that a call holds at a time beyond what was held before, and how they were counted.

    On a CPU the tensors made within the call, on a GPU what torch's allocator handed out. What libraries take for
    themselves is seen on a GPU only in part, on a CPU not at all.

    Args:
        call: Called once.
        device: Where it works.
        known: Tensors that were there before (on a CPU).
        reserved: Count what the allocator keeps, since a CUDA graph keeps its work space to itself.

    Example:
        >>> x = torch.zeros(1000)
        >>> work_space(lambda: x + 1, "cpu", known=[x])[0]
        4000
    """
    if torch.device(device).type != "cuda":
        with HeldBytes(*known) as held:
            call()
        return held.peak, "tensors made by the call"
    kind = "reserved" if reserved else "allocated"
    gc.collect()  # what is dropped during the call must not look like room made by it
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = getattr(torch.cuda, f"memory_{kind}")(device)
    call()
    torch.cuda.synchronize(device)
    return getattr(torch.cuda, f"max_memory_{kind}")(device) - before, f"memory {kind} on the device by the call"


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles, with linear interpolation.

    Example:
        >>> quantiles([0., 1., 2., 3., 4., 5.])
        (1.0, 2.5, 4.0)
    """
    return tuple(float(q) for q in np.quantile(np.asarray(values, float), LEVELS))


def interleave(
    calls: Mapping[str, Callable[[int], object]], rounds: int, device: str | torch.device = "cpu",
    *, shuffle: int | None = None, warm_up: bool = True,
) -> dict[str, Times]:  # fmt: skip
    """Times contestants in turns, a, b, a, b, ..., so that a busy minute of the machine slows all of them alike.

    Args:
        calls: Contestants; each is handed the number of the round, and round 0 is the warm-up.
        rounds: Timed rounds.
        device: Where they work, for :func:`clock_of`.
        shuffle: Seed of an order drawn anew each round, so that no contestant always finds the caches as the same
            other one has left them; by default the order stays.
        warm_up: Whether there is a round 0; without it that of the times is 0.

    Raises:
        ValueError: when there is no timed round.

    Example:
        >>> times = interleave({"a": lambda i: None, "b": lambda i: sum(range(10000))}, 3)
        >>> len(times["a"].seconds), speed_up(times["a"], times["b"])[1] < 1
        (3, True)
    """
    check_count("rounds", rounds)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, chance, clock = list(calls), random.Random(shuffle), clock_of(device)
    for i in range(0 if warm_up else 1, rounds + 1):
        if shuffle is not None:
            chance.shuffle(order)
        for name in order:
            began = clock()
            calls[name](i)
            taken[name].append(clock() - began)
    if not warm_up:
        return {name: Times(0.0, tuple(seconds)) for name, seconds in taken.items()}
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
    """A row for each contestant: its rate, and the ratio to the rate of the baseline.

    Args:
        case: Data, method and size, in words.
        times: Contestants, from :func:`interleave`.
        baseline: The one that the others are compared with.
        notes: A sentence for each.
        work: How much is done in a turn.
        measure: What the rate is called.
    """
    for name, each in times.items():
        ratios, note = speed_up(times[baseline], each), notes.get(name, "")
        yield Row.timed(case, name, measure, "1/s", each, lambda seconds: work / seconds, ratios=ratios, note=note)


def agreement(row: Row, allowed: float, what: str, module: str) -> Iterator[Row]:
    """Passes on the row of a difference between contestants, and then ends the run if it is too large.

    Args:
        row: The row, made by :meth:`Row.single`.
        allowed: The largest difference that rounding or truncation explains.
        what: What differs, a plural, for the message.
        module: Where to look for the fault.

    Raises:
        RuntimeError: when the difference is larger or not a number.
    """
    yield row
    found = row.values[1]
    if not found <= allowed:
        apart = f"{what} differ by {found:.2g} in {row.case}, but {allowed:g} is allowed"
        raise RuntimeError(f"{apart}: look for the fault in {module}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table or a file; the empty string for None and for what is not finite.

    Example:
        >>> number(12345.67), number(.00012346), number(None), number(7.0)
        ('12346', '0.0001235', '', '7')
    """
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
