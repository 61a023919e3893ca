"""What the device itself can do: rates of torch's matrix products and copies, for others to be held against.

A large product of random numbers, since zeros run faster, and a copy between buffers far beyond any cache, counting
bytes read and bytes written. Single precision is that of the product's dtype unless it says tf32; bfloat16 is measured
on CUDA alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from psmlib.benchmarks.timing import Row, Times, clock_of, interleave, quantiles

SINGLE, TENSOR_FLOAT, BRAIN_FLOAT, COPY = "float32 product", "tf32 product", "bfloat16 product", "copy"


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Args:
        side: Of the square matrices on a CPU; an accelerator gets four times that.
        megabytes: Of the buffer that is copied; likewise.
        rounds: Timed turns.
        device: Where.
    """

    side: int = 2048
    megabytes: int = 512
    rounds: int = 7
    device: str = "cpu"


SCALES = {"smoke": Settings(side=256, megabytes=16, rounds=3), "quick": Settings(), "full": Settings(rounds=31)}


@contextmanager
def product_precision(name: str) -> Iterator[None]:
    """Within it, single-precision products on CUDA are made as ``name`` says: "ieee" or "tf32"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = name
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@cache
def measure(settings: Settings) -> dict[str, tuple[float, Times]]:
    """Work of a turn (operations, or bytes) and its times, by what was done; once for a device and settings.

    Example:
        >>> found = measure(SCALES["smoke"])
        >>> sorted(found)
        ['copy', 'float32 product']
    """
    cuda = torch.device(settings.device).type == "cuda"
    n, numbers = settings.side * (4 if cuda else 1), settings.megabytes * 2**18 * (4 if cuda else 1)
    like, g = {"device": settings.device}, torch.Generator().manual_seed(0)
    a, b, out = (torch.randn(n, n, generator=g).to(**like) for _ in range(3))
    source = torch.ones(numbers, **like)
    sink = torch.empty_like(source)

    def product(precision: str):
        def call(_: int) -> None:
            with product_precision(precision):
                torch.mm(a, b, out=out)

        return call

    calls = {SINGLE: product("ieee"), COPY: lambda i: sink.copy_(source)}
    if cuda:
        half = [v.bfloat16() for v in (a, b)]
        calls |= {TENSOR_FLOAT: product("tf32"), BRAIN_FLOAT: lambda i: torch.mm(*half)}
    taken = interleave(calls, settings.rounds, clock=clock_of(settings.device))
    work = {name: 2.0 * n**3 if "product" in name else 8.0 * numbers for name in calls}
    return {name: (work[name], taken[name]) for name in calls}


def ceilings(case: str, settings: Settings) -> Iterator[Row]:
    """The rows of a device, for a benchmark to put beside its own."""
    for name, (work, times) in measure(settings).items():
        unit, rates = "GFLOP/s" if "product" in name else "GB/s", quantiles([1e-9 * work / s for s in times.seconds])
        yield Row(case, "torch", name, unit, settings.rounds, rates, warm_up=times.warm_up)


def run(settings: Settings) -> Iterator[Row]:
    """Measures the device."""
    case = f"{settings.device}: a product of side {settings.side}, a copy of {settings.megabytes} MiB; x 4 on CUDA"
    yield from ceilings(case, settings)
