"""The fewest solver steps that reproduce the likelihood of 1,000 uniform RK4 steps.

The mean NLL of points of TY and HG at t0 = 0.001 (VP with b(t) = 10t, exact trace), for the exact score and for a
conditioned bank on the blocks of TPSM-B trained briefly with SOAP. For each grid and method we search the fewest steps
whose mean NLL is within 2e-3 nat of the reference. The error may cross zero by chance, so a number of steps counts only
if 1.5 times and twice as many pass too. The ratio is that of the evaluations of the field, since a step of Heun's
method takes two and one of RK4 four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from psmlib import standard_errors
from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.timing import Row
from psmlib.data.toys import load_toy
from psmlib.likelihood import Likelihood, log_likelihood
from psmlib.nets.mlp import Conditioned
from psmlib.partition import TPSM_B
from psmlib.process import VP
from psmlib.score import Score
from psmlib.training import fit
from psmlib.training.times import LogUniform

T0 = 1e-3
TOLERANCE = 2e-3
CONTESTANTS = (("warped", "rk4"), ("log_snr", "rk4"), ("uniform", "rk4"), ("warped", "heun"))
RECIPE = dict(optimiser="soap", lr=1e-2, schedule="one_cycle", times=LogUniform(0.5, T0), batch_size=256)
"""How the bank is trained."""


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        points: Points that the NLL is the mean of.
        reference: Uniform RK4 steps of the reference.
        updates: Updates of the bank.
        toys: Data sets.
        contestants: Pairs of grid and method.
    """

    points: int = 300
    reference: int = 1000
    updates: int = 500
    toys: tuple[str, ...] = ("TY", "HG")
    contestants: tuple[tuple[str, str], ...] = CONTESTANTS


SCALES = {
    "smoke": Settings(points=20, reference=80, updates=20, toys=("HG",), contestants=CONTESTANTS[:1]),
    "quick": Settings(),
    "full": Settings(points=500, updates=2000),
}


def fewest(passes: Callable[[int], bool], start: int = 4, limit: int = 1000) -> int | None:
    """The fewest steps that pass, to one in fifty; None if ``limit`` steps do not.

    Doubles from ``start``, then bisects between the last failure and the first success on a logarithmic scale. Steps
    that pass while 1.5 times or twice as many fail do not count.

    Example:
        >>> fewest(lambda n: n >= 23), fewest(lambda n: n == 8 or n >= 50), fewest(lambda n: False)
        (23, 50, None)
    """
    low, high, ok = start - 1, start, cache(passes)
    while True:
        while not ok(high):
            if high >= limit:
                return None
            low, high = high, min(2 * high, limit)
        while high - low > max(1, high // 50):
            middle = min(max(round((low * high) ** 0.5), low + 1), high - 1)
            low, high = (low, middle) if ok(middle) else (middle, high)
        failed = [n for n in (high + high // 2, 2 * high) if n <= limit and not ok(n)]
        if not failed:
            return high
        low, high = failed[-1], min(failed[-1] + max(1, failed[-1] // 4), limit)


def search(solve: Callable[..., Likelihood], reference: Likelihood, limit: int) -> tuple[int | None, Likelihood]:
    """The fewest ``steps`` of a solve, and what it gives; None and the last solve if ``limit`` do not suffice."""
    found: dict[int, Likelihood] = {}

    def passes(n: int) -> bool:
        found[n] = solve(steps=n)
        return abs(float(_difference(found[n], reference).mean())) <= TOLERANCE

    n = fewest(passes, limit=limit)
    return n, found[limit if n is None else n]


def _difference(found: Likelihood, reference: Likelihood) -> Tensor:
    """Of the NLL at each point. Shape: (n,)."""
    return (reference.log_prob - found.log_prob).double()


def run(settings: Settings) -> Iterator[Row]:
    """Measures each toy with an exact and with a trained score."""
    process = VP(0.0, 10.0)
    for name in settings.toys:
        toy = load_toy(name)
        x = toy.sample(settings.points, torch.Generator().manual_seed(0))
        yield from _compare(f"{name}, exact score", toy.diffused(process), process, x, settings)
        bank = Bank(Conditioned(), len(TPSM_B))
        list(fit(bank, toy, process, TPSM_B, updates=settings.updates, **RECIPE))
        case = f"{name}, conditioned bank on TPSM-B, SOAP, {settings.updates:,} updates"
        yield from _compare(case, bank.score(TPSM_B, process), process, x.float(), settings)


def _compare(case: str, score: Score, process: VP, x: Tensor, settings: Settings) -> Iterator[Row]:
    """Compares every contestant with the reference, for one score."""
    case, limit = f"{case}, t0 = {T0:g}, {len(x)} points", settings.reference
    solve = partial(log_likelihood, score, process, x, t0=T0)
    reference = solve(steps=limit, method="rk4", grid="uniform")
    note = f"rk4, uniform, {limit:,} steps, {reference.nfe:,} evaluations of the field"
    yield Row.single(case, "reference", "mean NLL", "nat", -float(reference.log_prob.mean()), note=note)
    for grid, method in settings.contestants:
        n, found = search(partial(solve, method=method, grid=grid), reference, limit)
        difference, label = _difference(found, reference), f"{method}, {grid}"
        (mean, error), largest = standard_errors.mean(difference), float(difference.abs().max())
        if n is None:
            note = f"{limit:,} steps do not match it to {TOLERANCE:g}: they differ by {mean:.1e} nat on average"
            yield Row.single(case, label, "fewest steps", "1", float("nan"), note=note)
            continue
        note = f"{found.nfe} evaluations of the field"
        yield Row.single(case, label, "fewest steps", "1", n, ratio=reference.nfe / found.nfe, note=note)
        note = f"with {n} steps; standard error over the points {error:.1e}"
        yield Row.single(case, label, "difference of the mean NLL", "nat", mean, note=note)
        yield Row.single(case, label, "largest difference at a point", "nat", largest, note=f"with {n} steps")
