"""A training step of a bank of small networks: forward, backward and Adam for K networks of 4-100-150-100-2.

The contestants, with the same parameters, batches and learning rate:

* one by one: an `nn.Sequential` and a `torch.optim.Adam` for each network, the obvious loop;
* vmap: `torch.func.vmap` of `grad` over stacked parameters, one Adam over the stack;
* products: batched matrix products by autograd and Adam; "compiled" is the same through torch.compile with CUDA graphs;
* psmlib, products: the gradient written out by hand; recorded as a graph on CUDA;
* psmlib, loop: the same for one network after another, as `fit` does on a CPU;
* psmlib, fused: the two Triton kernels, on CUDA only.

Operations are the necessary ones, 6 K B (ab + ...) less the first layer's input gradients; bytes those of parameters
and moments, read and written once, with batches, activations and deltas written and read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import device as roof
from psmlib.benchmarks.bank_contestants import LR, STAGES, Contestant, Loop, OneByOne, Ours, Products, Vmap
from psmlib.benchmarks.timing import DeviceSettings, Row, agreement, interleave, rows, work_space
from psmlib.kernels import fused_updates
from psmlib.nets.mlp import Plain


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        networks: K.
        batch: Rows of a batch.
        steps: Steps in a turn.
    """

    networks: int = 10
    batch: int = 512
    steps: int = 5


SCALES = {
    "smoke": Settings(networks=3, batch=16, steps=2, rounds=2),
    "quick": Settings(),
    "full": Settings(networks=200, steps=10, rounds=3),
}


def operations(widths: tuple[int, ...], networks: int, batch: int) -> float:
    """Necessary floating-point operations of a step.

    Example:
        >>> round(operations((4, 100, 150, 100, 2), 200, 512) / 1e9, 1)
        18.7
    """
    pairs = [a * b for a, b in zip(widths, widths[1:], strict=False)]
    return 2.0 * networks * batch * (3 * sum(pairs) - pairs[0])


def traffic(widths: tuple[int, ...], networks: int, batch: int) -> float:
    """Bytes of a fused step in single precision: see the module.

    Example:
        >>> round(traffic((4, 100, 150, 100, 2), 200, 512) / 1e9, 2)
        0.73
    """
    parameters = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    numbers = 2 * (2 * sum(widths) - widths[0] - widths[-1]) + widths[0] + widths[-1]
    return 4.0 * networks * (6 * parameters + batch * numbers)


def places(rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Where the contestants stand under a roofline: necessary operations a byte, and the measured rate [GFLOP/s].

    Args:
        rows: Of one device, from :func:`psmlib.benchmarks.records.latest`.

    Example:
        >>> about = dict(case="10 networks of 4-100-150-100-2, batch 512, cpu", measure="arithmetic of a step")
        >>> {k: (round(a), b) for k, (a, b) in places(pd.DataFrame([about | dict(method="vmap", q50=9.0)])).items()}
        {'training: vmap': (26, 9.0)}
    """
    found = {}
    for row in rows[(rows["measure"] == "arithmetic of a step") & rows["q50"].notna()].itertuples():
        networks, widths, batch = re.match(r"(\d+) networks of ([\d-]+), batch (\d+)", row.case).groups()
        size = tuple(map(int, widths.split("-"))), int(networks), int(batch)
        found[f"training: {row.method}"] = operations(*size) / traffic(*size), row.q50
    return found


def contestants(settings: Settings) -> dict[str, Contestant]:
    """All contestants that can run on the device, with the same networks and batches."""
    bank, g = Bank(Plain(), settings.networks, device=settings.device), torch.Generator().manual_seed(0)
    shape = (settings.steps, settings.networks, settings.batch)
    h, target = (torch.randn(*shape, w, generator=g).to(settings.device) for w in (bank.widths[0], bank.widths[-1]))
    given = bank, h, target
    made = {"one by one": OneByOne(*given), "vmap": Vmap(*given), "products": Products(*given)}
    if torch.device(settings.device).type == "cuda":
        made["products, compiled"] = Products(*given, compiled=True)
        if fused_updates.triton is not None:
            made["psmlib, fused"] = Ours(*given, fused_updates.FusedUpdates)
    return made | {"psmlib, products": Ours(*given), "psmlib, loop": Loop(*given)}


NOTES = {
    "one by one": "nn.Sequential and torch.optim.Adam for each network",
    "vmap": "torch.func.vmap of grad, one torch.optim.Adam",
    "products": "torch.baddbmm by autograd, one torch.optim.Adam",
    "products, compiled": "the same under torch.compile, reduce-overhead",
    "psmlib, products": "gradient and Adam by hand, all networks a step; a CUDA graph on CUDA",
    "psmlib, loop": "gradient and Adam by hand, one network after another",
    "psmlib, fused": "two Triton kernels a step in a CUDA graph, products in tf32",
}


def run(settings: Settings) -> Iterator[Row]:
    """Measures every stage of every contestant.

    Raises:
        RuntimeError: when contestants reach parameters that differ by more than Adam's steps can by rounding.
    """
    made, device = contestants(settings), settings.device
    widths, K, B = Plain().widths, settings.networks, settings.batch
    case = f"{K} networks of {'-'.join(map(str, widths))}, batch {B}, {device}"
    for each in made.values():
        each.step()
    ahead = {name: each.flat().clone() for name, each in made.items()}
    for stage in STAGES:
        calls = {name: each.call(stage) for name, each in made.items()}
        taken = interleave(calls, settings.rounds, device)
        measure = f"network-steps a second, {stage}"
        yield from rows(case, taken, "one by one", NOTES, work=K * settings.steps, measure=measure)
    for name, each in taken.items():
        for what, unit, count in (("arithmetic", "GFLOP/s", operations), ("traffic", "GB/s", traffic)):
            work = 1e-9 * settings.steps * count(widths, K, B)
            note = f"{count(widths, K, B):.3g} of them a step cannot be spared"
            yield Row.timed(case, name, f"{what} of a step", unit, each, lambda s, work=work: work / s, note=note)
        held, how = work_space(partial(made[name].call("step"), 1), device)
        yield Row.single(case, name, "most memory at a time in a step", "MiB", held / 2**20, note=how)
    yield from roof.ceilings(case, roof.Settings(device=device, side=1024, megabytes=256, rounds=5))
    worst = max(float((flat - ahead["one by one"]).abs().max()) for flat in ahead.values())
    bound = 2 * LR * settings.steps
    note = f"parameters after {settings.steps} steps; must be at most {bound:g}, what Adam can move by rounding alone"
    row = Row.single(case, "all", "largest difference", "1", worst, note=note)
    yield from agreement(row, bound, f"parameters after {settings.steps} steps", "psmlib.kernels.bank_updates")
