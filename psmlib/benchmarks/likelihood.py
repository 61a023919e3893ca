"""Log likelihoods of a trained network: `log_likelihood` against torchdiffeq with an autograd trace.

The network is 4-100-150-100-2 of SA-DPM, float32, trained briefly on TY; RK4 on a uniform grid from t = 0.001 to 1,
exact trace. torchdiffeq gets the same grid as its steps, keeps only the two ends, and its trace takes two backward
passes without a graph of their own, which is faster than what the released scripts do. Its "rk4" is the 3/8 rule, ours
the classical one; on these grids both give the same to 1e-4, which is checked. JAX joins in on a CPU where it is.

All points are solved together, as in the paper, and the contestants take turns at stretches of the time grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import device as roof
from psmlib.benchmarks import in_jax
from psmlib.benchmarks.plain import sequential
from psmlib.benchmarks.timing import DeviceSettings, Row, agreement, interleave, rows
from psmlib.data.toys import load_toy
from psmlib.likelihood import log_likelihood
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP
from psmlib.sampling import grids
from psmlib.training import fit

T0 = 1e-3
TOLERANCE = 1e-4

State = tuple[Tensor, Tensor]
"""Points, (n, d), and the divergence integrated so far, (n,)."""


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        points: Points, solved together.
        rounds: Stretches that the grid is cut into.
        steps: RK4 steps of a stretch.
        updates: Updates of the network beforehand, so that its field is not that of random weights.
        toy: Data set.
    """

    points: int = 10000
    rounds: int = 6
    steps: int = 10
    updates: int = 300
    toy: str = "TY"


SCALES = {
    "smoke": Settings(points=64, rounds=5, updates=50),
    "quick": Settings(),
    "full": Settings(points=30000, rounds=10, steps=100),
}


def by_torchdiffeq(net: nn.Sequential, process: VP, state: State, times: Tensor) -> State:
    """Integrates points and divergence along the grid by torchdiffeq, with the trace by autograd.

    Args:
        net: Predicts the noise from [x, t, t].
        process: A VP path.
        state: Points and divergence at the start of the grid.
        times: The steps' ends, ascending. Shape: (steps + 1,).
    """

    def field(t: Tensor, state: State) -> State:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_(True)
            eps = net(torch.cat([y, t.to(y).expand(len(y), 2)], 1))
            v = -0.5 * process.beta(t) * (y - eps / process.sigma(t))
            trace = torch.zeros_like(state[1])
            for j in range(y.shape[1]):
                trace += torch.autograd.grad(v[:, j].sum(), y, retain_graph=j + 1 < y.shape[1])[0][:, j]
        return v.detach(), trace

    with torch.no_grad():
        options = {"grid_constructor": lambda f, y, t: times}
        y, change = odeint(field, state, times[[0, -1]], method="rk4", options=options)
    return y[-1], change[-1]


def by_psmlib(score, process: VP, state: State, times: Tensor) -> State:
    """The same by :func:`psmlib.likelihood.log_likelihood`."""
    ends = {"t0": float(times[0]), "t1": float(times[-1])}
    found = log_likelihood(score, process, state[0], grid=times, **ends)
    return found.x_T, state[1] + found.change


def operations(widths: tuple[int, ...]) -> float:
    """Floating-point operations of a field of the plane and its exact trace at one point, by forward mode.

    Example:
        >>> operations((4, 100, 150, 100, 2))
        182000.0
    """
    pairs = [a * b for a, b in zip(widths, widths[1:], strict=False)]
    return 2.0 * (3 * sum(pairs) - 2 * pairs[0])


def places(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Where the contestants stand under a roofline: operations a byte, and the measured rate [GFLOP/s].

    Of a point in the plane six numbers have to be read and written, once in ten steps of four evaluations.

    Args:
        rows: Of one device, from :func:`psmlib.benchmarks.records.latest`.
    """
    measured = rows[(rows["measure"] == "arithmetic") & rows["q50"].notna()]
    intensity = operations(Plain().widths) / (4 * 6 / (4 * 10))
    return {f"likelihood: {row.method}": (intensity, row.q50) for row in measured.itertuples()}


class Contestant:
    """Solves one stretch after another; round 0, the warm-up, solves the first stretch for a few points only."""

    def __init__(self, solve: Callable[[State, Tensor], State], x: Tensor, times: Tensor, steps: int):
        self.solve, self.times, self.steps = solve, times, steps
        self.state = x, x.new_zeros(len(x))

    def __call__(self, i: int) -> None:
        start = max(0, i - 1) * self.steps
        times = self.times[start : start + self.steps + 1]
        if i == 0:
            self.solve(tuple(part[:100] for part in self.state), times)
        else:
            self.state = self.solve(self.state, times)


def run(settings: Settings) -> Iterator[Row]:
    """Measures one network.

    Raises:
        RuntimeError: when the contestants differ by more than 1e-4.
    """
    toy, process, bank = load_toy(settings.toy), VP(0.0, 10.0), Bank(Plain(), 1, device=settings.device)
    list(fit(bank, toy, process, SA, updates=settings.updates))
    score, net = bank.score(SA, process), sequential(bank.params[0].cpu(), bank.arch.widths)
    net = net.to(settings.device).requires_grad_(False)
    x, steps = toy.sample(settings.points, torch.Generator().manual_seed(0)), settings.steps * settings.rounds
    x = x.to(settings.device, torch.float32)
    times = grids.uniform(T0, 1.0, steps)
    solves = {"torchdiffeq": partial(by_torchdiffeq, net, process), "psmlib": partial(by_psmlib, score, process)}
    if in_jax.jax is not None and settings.device == "cpu":
        solves["JAX"] = partial(in_jax.likelihood, bank.params[0], bank.arch.widths)
    calls = {name: Contestant(solve, x, times, settings.steps) for name, solve in solves.items()}
    taken = interleave(calls, settings.rounds, settings.device)
    case = f"{toy.name}, SA-DPM, RK4, exact trace, {len(x):,} points x {steps:,} steps"
    case += "" if settings.device == "cpu" else f", {settings.device}"
    part = "" if (len(x), steps) == (30000, 1000) else "; a part of the full case, 30,000 points x 1,000 steps"
    notes = {
        "torchdiffeq": f"odeint rk4 on the same grid, two backward passes for the trace{part}",
        "psmlib": f"psmlib.likelihood.log_likelihood{part}",
        "JAX": f"compiled whole, {in_jax.ROWS} points at a time, the trace by forward mode{part}",
    }
    work = len(x) * settings.steps
    yield from rows(case, taken, "torchdiffeq", notes, work=work, measure="steps of a point a second")
    for name, each in taken.items():
        ratio = sum(taken["torchdiffeq"].seconds) / sum(each.seconds)
        yield Row.single(case, name, "time of the solve", "s", sum(each.seconds), ratio=ratio, note=notes[name])
    count = 4 * work * operations(bank.widths)
    note = f"{operations(bank.widths):,.0f} operations an evaluation cannot be spared"
    for name, each in taken.items():
        yield Row.timed(case, name, "arithmetic", "GFLOP/s", each, lambda seconds: 1e-9 * count / seconds, note=note)
    yield from roof.ceilings(case, roof.Settings(device=settings.device, side=1024, megabytes=256, rounds=5))
    values = [process.prior_log_prob(call.state[0]) + call.state[1] for call in calls.values()]
    largest = max(float((values[0] - other).abs().max()) for other in values[1:])
    note = f"over all points; must be at most {TOLERANCE:g}"
    row = Row.single(case, "psmlib", "largest difference of a log likelihood", "nat", largest, note=note)
    what, where = "log likelihoods of psmlib and torchdiffeq", "psmlib.likelihood, or use more steps"
    yield from agreement(row, TOLERANCE, what, where)
