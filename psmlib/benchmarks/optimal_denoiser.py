"""The optimal denoiser: its rate relative to the two matrix products that it needs.

The baseline, 100 %, is torch.mm of the same two shapes alone, x data^T and weights x data; the contestants take turns
with it, all in float32. "Full softmax" is the obvious program with a (queries, data) matrix. Data: synthetic pictures
with values in [0, 1], 24 random fields smoothed along the axes plus a little noise, and the digits. With much noise the
weight is spread over thousands of pictures, with little it is all on one, and most of the second product is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from psmlib.benchmarks.timing import DeviceSettings, Row, agreement, interleave, rows, work_space
from psmlib.kernels.optimal_denoiser import optimal_denoiser, optimal_denoiser_ref, posterior, top_weights

TOLERANCE = 1e-3
NOISES = {"much noise": 10.0, "little noise": 0.3}


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        data: Pictures.
        many: Pictures of the case that measures memory.
        axes: Numbers of a picture.
        queries: Noisy pictures.
    """

    data: int = 10_000
    many: int = 50_000
    axes: int = 3072
    queries: int = 256


SCALES = {
    "smoke": Settings(data=600, many=1200, axes=192, queries=40, rounds=5),
    "quick": Settings(),
    "full": Settings(rounds=31),
}


def pictures(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Synthetic pictures: random mixtures of a few fields plus noise, clamped to [0, 1]. Shape: (n, d)."""
    fields = torch.randn(24, d, generator=generator).cumsum(1)
    fields = (fields - fields.mean(1, keepdim=True)) / fields.std(1, keepdim=True)
    mixed = torch.randn(n, 24, generator=generator) @ fields
    mixed.mul_(0.2 / 24**0.5).add_(0.5)
    for part in mixed.split(1000):
        part.add_(0.05 * torch.randn(part.shape, generator=generator)).clamp_(0, 1)
    return mixed


def full_softmax(x: Tensor, data: Tensor, sigma: float) -> Tensor:
    """The expected noise, with the matrix of all weights."""
    weights = torch.softmax(torch.cdist(x, data).square() * (-0.5 / sigma**2), 1)
    return (x - weights @ data) / sigma


def compare(case: str, x: Tensor, data: Tensor, sigma: float, rounds: int, naive: bool = True) -> Iterator[Row]:
    """All contestants on one problem."""
    weights = torch.rand(len(x), len(data), device=x.device)
    calls = {
        "two products": lambda i: (torch.mm(x, data.T), torch.mm(weights, data)),
        "full softmax": lambda i: full_softmax(x, data, sigma),
        "optimal_denoiser": lambda i: optimal_denoiser(x, data, 1.0, sigma),
        "posterior": lambda i: posterior(x, data, 1.0, sigma),
        "top_weights": lambda i: top_weights(x, data, 1.0, sigma, 5),
    }
    if not naive:
        del calls["full softmax"]
    notes = {
        "two products": "torch.mm of x data^T and weights data, nothing else",
        "full softmax": "torch.cdist, softmax and a product, with a matrix of all weights",
        "optimal_denoiser": "the expected noise",
        "posterior": "mean, noise, log density and variance",
        "top_weights": "the five largest weights; one product",
    }
    taken = interleave(calls, rounds, x.device)
    yield from rows(case, taken, "two products", notes, work=len(x), measure="queries a second")
    for name in ("two products", "optimal_denoiser"):
        yield Row.timed(case, name, "time of a call", "ms", taken[name], lambda seconds: 1e3 * seconds)
    rate = 4e-9 * len(x) * data.numel() / min(taken["two products"].seconds)
    yield Row.single(case, "two products", "rate at best", "GFLOP/s", rate, note="" if x.is_cuda else "one thread")


def run(settings: Settings) -> Iterator[Row]:
    """Measures pictures, many pictures and digits.

    Raises:
        RuntimeError: when the denoiser differs by more than 1e-3 from direct differences in float64.
    """
    g = torch.Generator().manual_seed(0)
    data = pictures(settings.many, settings.axes, g).to(settings.device)
    pick = torch.randint(settings.data, (settings.queries,), generator=g)
    noise = torch.randn(settings.queries, settings.axes, generator=g).to(settings.device)
    worst = 0.0
    for part, many in ((data[: settings.data], False), (data, True)):
        for name, sigma in NOISES.items():
            x, rounds = data[pick] + sigma * noise, max(3, settings.rounds // 2) if many else settings.rounds
            case = f"{len(part):,} pictures of {settings.axes:,}, {len(x):,} queries, {name} ({sigma:g})"
            yield from compare(case, x, part, sigma, rounds, naive=not many)
            if many:
                held, _ = work_space(partial(optimal_denoiser, x, data, 1.0, sigma), x.device, known=[x, data])
                note = f"tensors that are neither queries nor data, which have {data.nbytes / 2**20:.0f} MiB"
                yield Row.single(case, "optimal_denoiser", "most memory at a time", "MiB", held / 2**20, note=note)
                continue
            for one in x[:2].split(1):
                exact = optimal_denoiser_ref(one.double(), part.double(), 1.0, sigma)
                worst = max(worst, float((optimal_denoiser(one, part, 1.0, sigma) - exact).abs().max()))
    digits = torch.from_numpy(load_digits().data).to(settings.device, torch.float32) / 16
    for name, sigma in {"much noise": 1.0, "little noise": 0.1}.items():
        x = digits + sigma * torch.randn(digits.shape, generator=g).to(digits)
        case = f"digits, {len(digits):,} x {digits.shape[1]}, as many queries, {name} ({sigma:g})"
        yield from compare(case, x, digits, sigma, settings.rounds)
    case = f"{settings.data:,} pictures of {settings.axes:,}"
    note = f"against direct differences in float64, two queries; must be at most {TOLERANCE:g}"
    row = Row.single(case, "optimal_denoiser", "largest difference of the noise", "1", worst, note=note)
    what = "the optimal denoiser and direct differences"
    yield from agreement(row, TOLERANCE, what, "psmlib.kernels.squared_distances")
