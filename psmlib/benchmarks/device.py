"""Rates of a device itself: torch's matrix products and copies, the ceilings that other rates are compared with.

A large product of random numbers, since zeros run faster, and a copy between buffers far larger than any cache,
counting bytes read and bytes written. Products of float32 have its full precision unless they say tf32; bfloat16 is
measured on CUDA only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import pandas as pd
import torch

from psmlib.benchmarks import records
from psmlib.benchmarks.timing import DeviceSettings, Row, Times, interleave
from psmlib.kernels.tf32 import product_precision

SINGLE, TENSOR_FLOAT, BRAIN_FLOAT, COPY = "float32 product", "tf32 product", "bfloat16 product", "copy"


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        side: Of the square matrices on a CPU; an accelerator gets four times that.
        megabytes: Of the buffer that is copied; likewise.
    """

    side: int = 2048
    megabytes: int = 512


SCALES = {"smoke": Settings(side=256, megabytes=16, rounds=3), "quick": Settings(), "full": Settings(rounds=31)}


@cache
def measure(settings: Settings) -> dict[str, tuple[float, Times]]:
    """Work of a turn (operations, or bytes) and its times, by name; cached for each settings.

    Example:
        >>> found = measure(SCALES["smoke"])
        >>> sorted(found)
        ['copy', 'float32 product']
    """
    cuda = torch.device(settings.device).type == "cuda"
    n, numbers = settings.side * (4 if cuda else 1), settings.megabytes * 2**18 * (4 if cuda else 1)
    g = torch.Generator().manual_seed(0)
    a, b, out = (torch.randn(n, n, generator=g).to(settings.device) for _ in range(3))
    source, sink = (torch.ones(numbers, device=settings.device) for _ in range(2))

    def product(precision: str, _: int) -> None:
        with product_precision(precision):
            torch.mm(a, b, out=out)

    calls = {SINGLE: partial(product, "ieee"), COPY: lambda i: sink.copy_(source)}
    if cuda:
        half = [v.bfloat16() for v in (a, b)]
        calls |= {TENSOR_FLOAT: partial(product, "tf32"), BRAIN_FLOAT: lambda i: torch.mm(*half)}
    taken = interleave(calls, settings.rounds, settings.device)
    work = {name: 2.0 * n**3 if "product" in name else 8.0 * numbers for name in calls}
    return {name: (work[name], taken[name]) for name in calls}


def ceilings(case: str, settings: Settings) -> Iterator[Row]:
    """The rows of a device, for a benchmark to put beside its own."""
    for name, (work, times) in measure(settings).items():
        unit = "GFLOP/s" if "product" in name else "GB/s"
        yield Row.timed(case, "torch", name, unit, times, lambda seconds, work=work: 1e-9 * work / seconds)


def roof(rows: pd.DataFrame) -> tuple[float, float] | None:
    """Rates of products [GFLOP/s] and of copies [GB/s] among one device's rows, or None where one was not measured.

    Args:
        rows: Of a benchmark that has the rows of :func:`ceilings` beside its own, from
            :func:`psmlib.benchmarks.records.latest`.
    """
    rates = [records.figure(rows, "torch", name) for name in (SINGLE, COPY)]
    return None if None in rates else (rates[0][1], rates[1][1])


def run(settings: Settings) -> Iterator[Row]:
    """Measures the device."""
    case = f"{settings.device}: a product of side {settings.side}, a copy of {settings.megabytes} MiB; x 4 on CUDA"
    yield from ceilings(case, settings)
