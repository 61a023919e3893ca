"""A training update of K image networks: one by one, by vmap, or as CUDA graphs.

Forward, backward and Adam on its own batch for each of K networks, float32; the batches are made beforehand. The
contestants:

* one by one: the library's loop on a CPU, some updates of one network and then of the next;
* vmap: `torch.func.vmap` of one network over stacked parameters;
* graphs: one CUDA graph a network, replayed on several streams; on a CUDA device only;
* desk: one CUDA graph into which the networks are copied in turn, as the library trains on a CUDA device; whole steps
  only, on a CUDA device only.

All start from the same networks, and their first gradients must agree. Rates count updates of one network. Rows of a
contestant "grouped" are of an earlier implementation, the K networks as the K groups of one network's convolutions. It
was dropped: it held K times the work space, and parts of a bank no longer equalled the whole bank to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.benchmarks.timing import DeviceSettings, Row, Times, agreement, interleave, rows, speed_up, work_space
from psmlib.benchmarks.unet_contestants import MODES, Graphs, OneByOne, SharedGraph, Vmap
from psmlib.machine.memory import check_memory
from psmlib.nets import ronneberger, unet
from psmlib.nets.image_module import ImageModule

TOLERANCE = 1e-2
"""Relative to the largest gradient: above rounding to tf32, far below the error of a wrong network."""
BASELINE = "one by one"


@dataclass(frozen=True)
class Settings(DeviceSettings):
    """How much to measure.

    Attributes:
        networks: K.
        batches: Images per update, of 8x8 and of 32x32.
        updates: Updates of each network in a turn.
        paper: The papers' widths instead of small ones.
        streams: On which the graphs run.
    """

    networks: int = 4
    batches: tuple[int, int] = (32, 8)
    updates: int = 2
    rounds: int = 5
    paper: bool = False
    streams: int = 4


SCALES = {
    "smoke": Settings(networks=2, batches=(2, 2), updates=1, rounds=2),
    "quick": Settings(),
    "full": Settings(networks=4, batches=(128, 128), updates=5, rounds=9, paper=True),
}


def cases(settings: Settings) -> Iterator[tuple[str, ImageModule, tuple[int, int, int, int]]]:
    """Name, network and shape of a batch."""
    place = {"device": settings.device}
    for shape, batch in zip(((1, 8, 8), (3, 32, 32)), settings.batches, strict=True):
        digits, levels = shape[1] == 8, 3 if shape[1] == 8 else 5
        if settings.paper:
            nets = unet.UNet(channels=shape[0], **place), ronneberger.Ronneberger(64, levels, shape[0], **place)
        else:
            deeper = {} if digits else {"dim_mults": (1, 2, 4), "attention": (None, None, "full")}
            sizes = shape[0], 16 if digits else 8
            nets = unet.small(*sizes, **deeper, **place), ronneberger.small(*sizes, levels=levels, **place)
        for net in nets:
            size = f"{type(net).__name__} of {net.parameter_count:,} parameters"
            name = f"{shape[1]}x{shape[2]}x{shape[0]}, {size}, {settings.networks} networks, batch {batch}"
            yield name, net, (batch, *shape)


def contestants(net: ImageModule, shape: tuple[int, int, int, int], settings: Settings) -> dict[str, OneByOne]:
    """All contestants that can run on the device, with the same networks and batches.

    Raises:
        MemoryError: when they would not fit.
    """
    K, own = settings.networks, net.memory(1, shape[2:], training=False)
    work = max(0, net.memory(shape[0], shape[2:]) - 4 * own)
    # all keep their state; vmap works for all networks at once, and a recorded graph keeps its work space
    check_memory(K * (20 * own + 3 * work), settings.device, f"comparing {K} networks at batch {shape[0]}")
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(K, *shape, generator=generator).to(settings.device) for _ in range(2))
    given = ImageBank(net, K), x, target, torch.rand(K, shape[0], generator=generator).to(settings.device)
    found = {BASELINE: OneByOne(*given), "vmap": Vmap(*given)}
    if torch.device(settings.device).type == "cuda":
        found |= {"graphs": Graphs(*given, settings.streams), "desk": SharedGraph(*given)}
    return found


def turns(sides: Mapping[str, OneByOne], mode: str, settings: Settings) -> dict[str, Times]:
    """Times of the contestants' turns."""
    calls = {name: lambda i, side=side: side.turn(mode, settings.updates) for name, side in sides.items()}
    return interleave(calls, settings.rounds, settings.device)


def held_by(side: OneByOne, device: str) -> tuple[int, str]:
    """Most bytes that an update holds beyond what is held between two updates, and how they were counted."""
    # a recorded graph keeps its work space to itself, which shows only in what the allocator reserves
    reserved = isinstance(side, Graphs | SharedGraph)
    return work_space(lambda: side.turn(MODES[-1], 1), device, known=side.state, reserved=reserved)


def fastest(case: str, taken: Mapping[str, Times]) -> Row:
    """The contestant with the least median time, with its speed relative to the next and to the baseline."""
    order = sorted(taken, key=lambda name: median(taken[name].seconds))
    (first, second), best = order[:2], taken[order[0]]
    lead, gain = (speed_up(taken[other], best) for other in (second, BASELINE))
    note = f"{lead[1]:.2f} times as fast as {second}"
    if second != BASELINE:
        note += f", {gain[1]:.2f} times as fast as {BASELINE}"
    return Row(case, first, f"lead of the fastest, {MODES[-1]}", "1", len(best.seconds), lead, gain, note=note)


def measure(case: str, net: ImageModule, shape: tuple[int, int, int, int], settings: Settings) -> Iterator[Row]:
    """All rows of one network.

    Raises:
        RuntimeError: when a contestant's gradients are not those of the loop.
    """
    sides = contestants(net, shape, settings)
    compared = {name: side for name, side in sides.items() if MODES[1] in side.modes}
    for side in compared.values():
        side.turn(MODES[1], 1)
    grads = {name: side.result()[2] for name, side in compared.items()}
    scale, wanted = grads[BASELINE].abs().max(), grads[BASELINE]
    off = {name: float((grad - wanted).abs().max() / scale) for name, grad in grads.items()}
    held = {name: held_by(side, settings.device) for name, side in sides.items()}
    notes = {name: side.note for name, side in sides.items()}
    for mode in MODES:
        taken = turns({name: side for name, side in sides.items() if mode in side.modes}, mode, settings)
        work = settings.networks * settings.updates
        yield from rows(case, taken, BASELINE, notes, work=work, measure=f"updates a second, {mode}")
        for kind, name in ((Graphs, "graphs"), (SharedGraph, "desk")):
            if name not in sides and mode in kind.modes:
                note = f"not measured: {settings.device} is no CUDA device"
                yield Row(case, name, f"updates a second, {mode}", "1/s", 0, (None, None, None), note=note)
    yield fastest(case, taken)
    for name, (peak, note) in held.items():
        ratio = held[BASELINE][0] / peak
        yield Row.single(case, name, "work space of an update", "MiB", peak / 2**20, ratio=ratio, note=note)
    note = f"of the largest gradient; must be at most {TOLERANCE:g}"
    for name in sorted(off, key=lambda name: (off[name] != off[name], off[name])):  # the worst last
        if name != BASELINE:
            row = Row.single(case, name, "largest difference of a gradient", "1", off[name], note=note)
            what, kind = f"gradients of {name} and of the loop", type(sides[name]).__name__
            yield from agreement(row, TOLERANCE, what, f"{kind} of psmlib.benchmarks.unet_contestants")


def run(settings: Settings) -> Iterator[Row]:
    """Measures both architectures on both sizes of image.

    Raises:
        RuntimeError: when a contestant's gradients are not those of the loop.
    """
    for case, net, shape in cases(settings):
        yield from measure(case, net, shape, settings)
