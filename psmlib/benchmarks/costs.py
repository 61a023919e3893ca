r"""Costs of computations for a chapter: seconds in turns, peaks of memory, and ratios with distribution-free intervals.

Contestants take turns (:func:`psmlib.benchmarks.timing.interleave`) and are compared turn by turn. Memory
(:func:`psmlib.benchmarks.timing.work_space`) is measured in separate runs, since counting it slows a run down.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from psmlib.benchmarks.cnf import CNF, adam_steps
from psmlib.benchmarks.timing import Times, interleave, quantiles, work_space
from psmlib.machine.checks import check_count
from psmlib.machine.deadline import Unfinished, late
from psmlib.machine.files import read_text, reading, write_atomic
from psmlib.machine.streams import stream
from psmlib.process import Process

LEVEL = 0.95  # of the intervals

Call = Callable[[], object]
Prediction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """Time and memory of a call.

    Attributes:
        times: Seconds of the warm-up and of each turn.
        peak_bytes: Most bytes held at a time beyond what was held before.
    """

    times: Times
    peak_bytes: int

    @property
    def seconds(self) -> tuple[float, float, float]:
        """The 20, 50 and 80 % quantiles of the turns."""
        return quantiles(self.times.seconds)


@dataclass(frozen=True)
class Ratio:
    """A ratio of costs with its interval.

    Attributes:
        value: Median over the turns.
        low, high: Ends of its interval.
        level: Chance that the interval holds the median of infinitely many turns, if they are independent.
    """

    value: float
    low: float
    high: float
    level: float

    @property
    def stderr(self) -> float:
        """The standard deviation of a normal law with an interval of this width and level; 0 where the level is 0."""
        return 0.0 if self.level == 0 else (self.high - self.low) / 2 / NormalDist().inv_cdf((1 + self.level) / 2)


def measure(f: Call, *, device: str | torch.device = "cpu", repeats: int = 5) -> Cost:
    """The cost of one call; see :func:`compare`.

    Example:
        >>> measure(lambda: torch.zeros(1000).double(), repeats=2).peak_bytes      # floats, and as many doubles
        12000
    """
    return compare({"": f}, device=device, repeats=repeats)[""]


def compare(
    calls: Mapping[str, Call], *, device: str | torch.device = "cpu", repeats: int = 5, small: Mapping[str, Call] = {},
    path: Path | None = None,
) -> dict[str, Cost]:  # fmt: skip
    """The costs of several calls, in turns; each round has another order.

    Args:
        calls: Contestants.
        device: Where they work; a GPU is waited for before a clock is read.
        repeats: Timed turns of each, after one for warming up.
        small: Shorter calls with the same peak of memory, such as of fewer steps, for measuring the peak: counting on
            a CPU looks at every operation, and takes two calls.
        path: Where peaks and turns are kept after each round; a later call goes on from there, after one for warming
            up. The name should tell the contestants and the machine: what it holds is not checked against the calls.

    Raises:
        ValueError: when there is nothing to compare, repeats is not positive, or the file is not of these contestants.
        Unfinished: at a deadline (:mod:`psmlib.machine.deadline`), between two rounds, if there is a path.

    Example:
        >>> found = compare({"a": lambda: torch.zeros(10**6), "b": lambda: torch.zeros(10)}, repeats=3)
        >>> found["a"].peak_bytes, found["b"].peak_bytes, len(found["a"].times.seconds)
        (4000000, 40, 3)
    """
    if not calls:
        raise ValueError("there is nothing to compare: give at least one call by name")
    check_count("repeats", repeats)
    turns = {name: lambda turn, call=call: call() for name, call in calls.items()}
    if path is not None:
        return _resumed(turns, path, repeats, device, {name: small.get(name, call) for name, call in calls.items()})
    held = peaks({name: small.get(name, call) for name, call in calls.items()}, device)
    taken = interleave(turns, repeats, device, shuffle=0)
    return {name: Cost(taken[name], held[name]) for name in calls}


def _resumed(
    turns: Mapping[str, Callable[[int], object]], path: Path, repeats: int, device, small: Mapping[str, Call]
) -> dict[str, Cost]:
    """The costs from a file, and what is missing there round by round."""
    kept = _kept(path, list(turns))
    if kept["rounds"] < repeats and not kept["bytes"] and not late():
        kept["bytes"] = peaks(small, device)
        write_atomic(path, json.dumps(kept))
    warm = False
    while kept["rounds"] < repeats:
        if late():
            raise Unfinished(kept["rounds"], repeats, sum(map(sum, kept["seconds"].values())))
        taken = interleave(turns, 1, device, shuffle=kept["rounds"], warm_up=not warm)
        warm, kept["rounds"] = True, kept["rounds"] + 1
        for name, times in taken.items():
            kept["seconds"][name] += times.seconds
        write_atomic(path, json.dumps(kept))
    return {name: Cost(Times(0.0, tuple(kept["seconds"][name][:repeats])), int(kept["bytes"][name])) for name in turns}


def _kept(path: Path, names: list[str]) -> dict:
    if not path.exists():
        return {"rounds": 0, "bytes": {}, "seconds": {name: [] for name in names}}
    with reading(path.name, "delete it and measure anew"):
        kept = json.loads(read_text(path))
        if not set(kept["seconds"]) == set(kept["bytes"]) == set(names):
            raise ValueError("it is of other contestants")
        if any(len(kept["seconds"][name]) != kept["rounds"] for name in names):
            raise ValueError("it has not all of its rounds")
        numbers = [*kept["bytes"].values(), *sum(kept["seconds"].values(), [])]
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"it has the numbers {numbers}")
        return kept


def ratio(cost: Cost, baseline: Cost, level: float = LEVEL) -> Ratio:
    r"""Seconds in units of the baseline's of the same turn, with an interval that assumes no distribution.

    Of n independent turns the k-th smallest and the k-th largest enclose the median with probability
    :math:`1 - 2P(\mathrm{Bin}(n, \tfrac12) < k)`; k is the largest for which that reaches the level, or 1.

    Raises:
        ValueError: when the two did not take the same number of turns.

    Example:
        >>> one, two = (Cost(Times(0., (1., 1., a, 1., 1., 1.)), 0) for a in (1., 9.))
        >>> ratio(two, one)
        Ratio(value=1.0, low=1.0, high=9.0, level=0.96875)
    """
    turns = [len(c.times.seconds) for c in (cost, baseline)]
    if turns[0] != turns[1]:
        raise ValueError(f"costs of {turns[0]} and {turns[1]} turns cannot be paired: measure both in one compare")
    each = sorted(a / b for a, b in zip(cost.times.seconds, baseline.times.seconds, strict=True))
    n, k = len(each), 1
    while k < n / 2 and _enclosed(n, k + 1) >= level:
        k += 1
    return Ratio(quantiles(each)[1], each[k - 1], each[-k], _enclosed(n, k))


def _enclosed(n: int, k: int) -> float:
    """Chance that the median lies between the k-th smallest and the k-th largest of n."""
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n if n > 1 else 0.0


def below(found: Ratio, limit: float) -> dict:
    """How far a ratio is below a limit, as the fields of a claim (:meth:`psmlib.book.results.Results.claim`).

    It holds if the whole interval is at the limit or below, does not hold if all of it is above, and is undecided
    otherwise, or where the turns are too few for an interval of level `LEVEL`.

    Returns:
        "verdict", "gain", "low" and "high", the last two being None without such an interval.

    Example:
        >>> below(Ratio(1.25, 1.125, 1.5, .96), 1.)
        {'verdict': 'does not hold', 'gain': -0.25, 'low': -0.5, 'high': -0.125}
    """
    return _claimed(limit - found.value, limit - found.high, limit - found.low, found.level)


def above(found: Ratio, limit: float) -> dict:
    """How far a ratio is above a limit, likewise.

    Example:
        >>> above(Ratio(1.25, .75, 1.5, .96), 1.)["verdict"], above(Ratio(1.25, 1.125, 1.5, .5), 1.)["verdict"]
        ('undecided', 'undecided')
    """
    return _claimed(found.value - limit, found.low - limit, found.high - limit, found.level)


def _claimed(gain: float, low: float, high: float, level: float) -> dict:
    if level < LEVEL:
        return dict(verdict="undecided", gain=gain, low=None, high=None)
    verdict = "holds" if low >= 0 else "does not hold" if high < 0 else "undecided"
    return dict(verdict=verdict, gain=gain, low=low, high=high)


def largest(ratios: Sequence[Ratio]) -> Ratio:
    """The largest of several ratios, with ends that each of them allows: all are below a limit if it is.

    Example:
        >>> largest([Ratio(1., .5, 1.5, .97), Ratio(.75, .625, 2., .96)])
        Ratio(value=1.0, low=0.625, high=2.0, level=0.96)
    """
    value, low, high = (max(getattr(r, name) for r in ratios) for name in ("value", "low", "high"))
    return Ratio(value, low, high, min(r.level for r in ratios))


def peak_bytes(f: Call, device: str | torch.device = "cpu") -> int:
    """Most bytes that a call holds at a time beyond what was held before; see :func:`peaks`.

    Example:
        >>> x = torch.zeros(1000)
        >>> peak_bytes(lambda: x[:500] + 1)              # what was there before counts nothing, nor do views of it
        2000
    """
    return peaks({"": f}, device)[""]


def peaks(calls: Mapping[str, Call], device: str | torch.device = "cpu") -> dict[str, int]:
    """Most bytes that each call holds at a time beyond what was held before.

    Each is made twice: what a first call leaves behind for later ones, such as networks read from a disk or the work
    space of a library, is held before the second.
    """
    for call in calls.values():
        call()
    known = _tensors() if torch.device(device).type == "cpu" else ()
    return {name: work_space(call, device, known=known)[0] for name, call in calls.items()}


def _tensors() -> list[Tensor]:
    """Every tensor with storage that Python knows of; types are asked, since objects may lie about their class."""
    found = []
    for each in gc.get_objects():
        if issubclass(type(each), Tensor):
            with suppress(NotImplementedError, RuntimeError):  # raised by tensors without storage
                each.untyped_storage()
                found.append(each)
    return found


def denoising_update(
    predict: Prediction, params: Sequence[Tensor], process: Process, x0: Tensor, t: Tensor,
    lr: float = 1e-3, seed: int = 0,
) -> Call:  # fmt: skip
    """One update of a noise prediction, as a call: draw the noise, loss, gradient by torch, Adam.

    It uses torch's automatic differentiation, like :func:`flow_update`, so that the two differ only in the loss.

    Args:
        predict: eps(x, t), differentiable in the parameters.
        params: Tensors that require gradients; each call changes them.
        process: The Gaussian path.
        x0: The batch. Shape: (n, *shape).
        t: Its times. Shape: (n,).
        lr: Learning rate; 0 to leave the network as it is.
        seed: Of the noise.

    Example:
        >>> from psmlib.benchmarks.cnf import differentiable
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.process import VP
        >>> predict, params = differentiable(Bank(Plain(), 1), VP(0., 10.))
        >>> update = denoising_update(predict, [params], VP(0., 10.), torch.zeros(8, 2), torch.rand(8))
        >>> update() > 0
        True
    """
    step, generator = adam_steps(params, lr), stream(seed, device=x0.device)

    def update() -> float:
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        with torch.enable_grad():
            loss = (predict(process.perturb(x0, t, eps), t) - eps).square().mean()
        step(torch.autograd.grad(loss, list(params)))
        return loss.item()

    return update


def flow_update(flow: CNF, x0: Tensor, lr: float = 1e-3) -> Call:
    """One update of a continuous normalising flow by maximum likelihood, as a call.

    Example:
        >>> from psmlib.bank.mlp_bank import Bank
        >>> from psmlib.nets.mlp import Plain
        >>> flow = CNF.of_bank(Bank(Plain(), 1, native="velocity"), steps=2)
        >>> flow_update(flow, torch.zeros(8, 2))() > 0, flow.evaluations
        (True, 8)
    """
    step = adam_steps(flow.params, lr)

    def update() -> float:
        loss, slopes = flow.loss_and_gradient(x0)
        step(slopes)
        return loss

    return update
