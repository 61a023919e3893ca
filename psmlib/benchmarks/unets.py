"""A training update of K image networks: one by one, as one wide network, or as CUDA graphs on streams.

What is run: forward, backward and Adam on a batch of its own for each of K networks, float32; the batches are made
beforehand. The contestants:

* one by one: the library's loop on a CPU, some updates of one network and then of the next;
* vmap: `torch.func.vmap` of one network over stacked parameters;
* grouped: :class:`psmlib.nets.grouped.Grouped`, the K networks as groups of one network's convolutions;
* graphs: one CUDA graph a network, replayed on several streams; on a CUDA device alone;
* desk: one CUDA graph to which the networks come in turn, the library's way there; whole steps on a CUDA device alone.

All start from the same networks, and their first gradients must agree. An update is that of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from psmlib.benchmarks.timing import Row, Times, interleave, quantiles, rows, speed_up
from psmlib.graphs import Captured
from psmlib.image_steps import Desk
from psmlib.kernels.bank_updates import adam_rates, adam_step
from psmlib.memory import HeldBytes, check_memory
from psmlib.nets import ronneberger, unet
from psmlib.nets.grouped import Grouped
from psmlib.nets.image_bank import ImageBank
from psmlib.nets.image_module import ImageModule
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.optim import Adam
from psmlib.process import VP

LR = 1e-4
PROCESS = VP(0.0, 10.0)
TOLERANCE = 1e-2
"""Of the largest gradient: above the rounding of matrix units that shorten float32, far below a wrong network."""
MODES = ("forward", "forward and backward", "whole step")
BASELINE = "one by one"


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Args:
        networks: K.
        batches: Images per update, of 8x8 and of 32x32.
        updates: Updates of each network in a turn.
        rounds: Turns of each contestant.
        paper: The papers' widths instead of small ones.
        streams: On which the graphs run.
        device: Where.
    """

    networks: int = 4
    batches: tuple[int, int] = (32, 8)
    updates: int = 2
    rounds: int = 5
    paper: bool = False
    streams: int = 4
    device: str = "cpu"


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
            nets = UNet(channels=shape[0], **place), Ronneberger(64, levels, shape[0], **place)
        else:
            deeper = {} if digits else {"dim_mults": (1, 2, 4), "attention": (None, None, "full")}
            width = 16 if digits else 8
            nets = (
                unet.small(shape[0], width, **deeper, **place),
                ronneberger.small(shape[0], width, levels=levels, **place),
            )
        for net in nets:
            size = f"{type(net).__name__} of {net.parameter_count:,} parameters"
            name = f"{shape[1]}x{shape[2]}x{shape[0]}, {size}, {settings.networks} networks, batch {batch}"
            yield name, net, (batch, *shape)


class OneByOne:
    """The library's loop over the networks.

    Args:
        bank: The networks; they are copied.
        x: Images. Shape: (K, n, C, H, W).
        target: What the networks shall say. Shape: that of x.
        t: Times. Shape: (K, n).

    Example:
        >>> bank, x = ImageBank(unet.small(dim=8), 2), torch.zeros(2, 3, 1, 8, 8)
        >>> loop = OneByOne(bank, x, x + 1, torch.rand(2, 3))
        >>> loop.turn("whole step", 5)
        >>> bool((loop.bank.params == bank.params).all())
        False
    """

    note = "one network after another, as psmlib.training.fit runs them on a CPU"
    modes = MODES

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        self.bank, self.target, self.count = bank.copy(), target, 0
        self.grad, self.moments = torch.zeros_like(bank.params), Adam(bank.params)
        self.inputs = [self.bank.network(0).inputs(*pair, PROCESS) for pair in zip(x, t, strict=True)]
        for k in range(len(bank)):
            self.bank.bind_gradients(k, self.grad[k])
            self.bank.network(k).train().requires_grad_(True)

    @property
    def state(self) -> list[Tensor]:
        """The tensors that are there between two updates."""
        held = [*self.bank.tensors.values(), self.grad, *self.moments.state.values(), self.target]
        return held + [tensor for inputs in self.inputs for tensor in inputs]

    def gradients(self) -> Tensor:
        """The last gradients. Shape: (K, P)."""
        return self.grad

    def derive(self, k: int, mode: str) -> None:
        """Forward and, unless that is all, backward through network k."""
        self.grad[k].zero_()
        with torch.enable_grad():
            loss = F.mse_loss(self.bank.network(k)(*self.inputs[k]), self.target[k])
            if mode != MODES[0]:
                loss.backward()

    def turn(self, mode: str, updates: int) -> None:
        """Does some updates of every network, up to ``mode``."""
        for k in range(len(self.bank)):
            part = slice(k, k + 1)
            params, grad, moments = self.bank.params[part], self.grad[part], self.moments.part(part)
            for i in range(updates):
                self.derive(k, mode)
                if mode == MODES[-1]:
                    moments.step(params, grad, lr=LR, count=self.count + i + 1)
        self.count += updates * (mode == MODES[-1])


class Side:
    """The networks side by side, as groups of one network; arguments as of :class:`OneByOne`."""

    note = "K groups of one wide network's convolutions, psmlib.nets.grouped"
    modes = MODES

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        self.wide, self.target, self.count = Grouped(bank), target, 0
        self.moments = Adam(self.wide.params)
        inputs = [bank.network(0).inputs(*pair, PROCESS) for pair in zip(x, t, strict=True)]
        self.inputs = [torch.stack(tensors) for tensors in zip(*inputs, strict=True)]

    @property
    def bank(self) -> ImageBank:
        """The networks as they are now."""
        return self.wide.bank()

    @property
    def state(self) -> list[Tensor]:
        """The tensors that are there between two updates."""
        wide = self.wide
        return [wide.params, wide.buffers, wide.grad, *self.moments.state.values(), self.target, *self.inputs]

    def gradients(self) -> Tensor:
        """The last gradients. Shape: (K, P)."""
        return self.wide.gradients()

    def say(self) -> Tensor:
        """What each network says. Shape: (K, n, C, H, W)."""
        return self.wide(*self.inputs)

    def turn(self, mode: str, updates: int) -> None:
        """Does some updates of every network, up to ``mode``."""
        for _ in range(updates):
            self.wide.grad.zero_()
            with torch.enable_grad():
                losses = (self.say() - self.target).square().mean((1, 2, 3, 4))
                if mode != MODES[0]:
                    losses.sum().backward()
            if mode == MODES[-1]:
                self.count += 1
                self.moments.step(self.wide.params, self.wide.grad, lr=LR, count=self.count)


class Vmap(Side):
    """One network mapped over stacked parameters; arguments as of :class:`OneByOne`."""

    note = "torch.func.vmap of one network over stacked parameters"

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        super().__init__(bank, x, target, t)
        self.one = bank.copy().network(0).train()

    def say(self) -> Tensor:
        stack = lambda named: {name: tensor.unflatten(0, (len(self.target), -1)) for name, tensor in named}  # noqa: E731
        net = self.wide.net

        def call(params: dict, buffers: dict, *inputs: Tensor) -> Tensor:
            return torch.func.functional_call(self.one, (params, buffers), inputs)

        return torch.func.vmap(call)(stack(net.named_parameters()), stack(net.named_buffers()), *self.inputs)


class Graphs(OneByOne):
    """One recorded update a network, replayed on several streams.

    Args:
        bank, x, target, t: As of :class:`OneByOne`.
        streams: How many.
    """

    note = "one CUDA graph a network, replayed on streams"

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor, streams: int):
        super().__init__(bank, x, target, t)
        self.rates = bank.params.new_ones(len(bank), 2)
        cuda = bank.device.type == "cuda"
        self.streams = [torch.cuda.Stream(bank.device) for _ in range(streams)] if cuda else []
        self.recorded: dict[tuple[int, str], Captured] = {}

    @property
    def state(self) -> list[Tensor]:
        return [*super().state, self.rates]

    def _record(self, k: int, mode: str) -> Captured:
        """The work of one update of network k."""
        row, buffers, rates = self.bank.params[k], self.bank.buffers[k], self.rates[k]
        moments = [tensor[k] for tensor in self.moments.state.values()]

        def work() -> None:
            self.derive(k, mode)
            if mode == MODES[-1]:
                adam_step(row, self.grad[k], *moments, rates)

        return Captured(work, self.bank.device, [row, buffers, *moments])

    def _on(self, k: int) -> AbstractContextManager:
        """The stream of network k."""
        return torch.cuda.stream(self.streams[k % len(self.streams)]) if self.streams else nullcontext()

    def turn(self, mode: str, updates: int) -> None:
        networks = range(len(self.bank))
        for k in networks:
            if (k, mode) not in self.recorded:
                self.recorded[k, mode] = self._record(k, mode)
        table = adam_rates(lambda i: LR, self.count, updates).to(self.rates)
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream(self.bank.device))
        for row in table:
            for k in networks:
                with self._on(k):
                    self.rates[k].copy_(row)
                    self.recorded[k, mode]()
        for stream in self.streams:
            torch.cuda.current_stream(self.bank.device).wait_stream(stream)
        self.count += updates * (mode == MODES[-1])


class AtDesk(OneByOne):
    """Networks in turn at one recorded step; arguments as of :class:`OneByOne`."""

    note = "one CUDA graph to which the networks come in turn, psmlib.image_steps.Desk"
    modes = MODES[-1:]

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        super().__init__(bank, x, target, t)
        self.batches = list(zip(x, t, target, strict=True))
        self.desk = Desk(self.bank, PROCESS, x[0], t[0], None)

    def turn(self, mode: str, updates: int) -> None:
        rates = adam_rates(lambda i: LR, self.count, updates)
        for k, batch in enumerate(self.batches):
            self.desk.train(self.bank, k, self.moments, None, [batch] * updates, rates)
        self.count += updates


def contestants(net: ImageModule, shape: tuple[int, int, int, int], settings: Settings) -> dict[str, OneByOne | Side]:
    """All that can run on the device, starting from the same networks and with the same batches.

    Raises:
        MemoryError: when they would not fit.
    """
    K, own = settings.networks, net.memory(1, shape[2:], training=False)
    work = max(0, net.memory(shape[0], shape[2:]) - 4 * own)
    # all keep their state; the wide ones work for all networks, and a recorded one keeps its work space
    check_memory(K * (20 * own + 3 * work), settings.device, f"comparing {K} networks at batch {shape[0]}")
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(K, *shape, generator=generator).to(settings.device) for _ in range(2))
    given = ImageBank(net, K), x, target, torch.rand(K, shape[0], generator=generator).to(settings.device)
    found = {BASELINE: OneByOne(*given), "vmap": Vmap(*given), "grouped": Side(*given)}
    if torch.device(settings.device).type == "cuda":
        found |= {"graphs": Graphs(*given, settings.streams), "desk": AtDesk(*given)}
    return found


def turns(sides: Mapping[str, OneByOne | Side], mode: str, settings: Settings) -> dict[str, Times]:
    """Times of the contestants' turns, each waited for."""

    def call(side: OneByOne | Side) -> Callable[[int], None]:
        def turn(_: int) -> None:
            side.turn(mode, settings.updates)
            if torch.device(settings.device).type == "cuda":
                torch.cuda.synchronize(settings.device)

        return turn

    return interleave({name: call(side) for name, side in sides.items()}, settings.rounds)


def work_space(side: OneByOne | Side, device: str) -> tuple[float, str]:
    """Most bytes that an update holds beside what is there between two updates, and how they were counted."""
    if torch.device(device).type != "cuda":
        with HeldBytes(*side.state) as held:
            side.turn(MODES[-1], 1)
        return held.peak, "tensors beside parameters, gradients, moments and batches"
    # a recorded update keeps its work space to itself, where only what is reserved tells of it
    kind = "reserved" if isinstance(side, Graphs | AtDesk) else "allocated"
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = getattr(torch.cuda, f"memory_{kind}")(device)
    side.turn(MODES[-1], 1)
    torch.cuda.synchronize(device)
    return getattr(torch.cuda, f"max_memory_{kind}")(device) - before, f"memory {kind} on the device in an update"


def fastest(case: str, taken: Mapping[str, Times]) -> Row:
    """Who took the least time in the median, how many times as fast as the next and as the baseline."""
    order = sorted(taken, key=lambda name: quantiles(taken[name].seconds)[1])
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
    wanted = sides[BASELINE].gradients()
    scale = wanted.abs().max()
    off = {name: float((side.gradients() - wanted).abs().max() / scale) for name, side in compared.items()}
    held = {name: work_space(side, settings.device) for name, side in sides.items()}
    notes = {name: side.note for name, side in sides.items()}
    for mode in MODES:
        taken = turns({name: side for name, side in sides.items() if mode in side.modes}, mode, settings)
        work = settings.networks * settings.updates
        yield from rows(case, taken, BASELINE, notes, work=work, measure=f"updates a second, {mode}")
        for kind, name in ((Graphs, "graphs"), (AtDesk, "desk")):
            if name not in sides and mode in kind.modes:
                note = f"not measured: {settings.device} is no CUDA device"
                yield Row(case, name, f"updates a second, {mode}", "1/s", 0, (None, None, None), note=note)
    yield fastest(case, taken)
    for name, (peak, note) in held.items():
        ratio = held[BASELINE][0] / peak
        yield Row.single(case, name, "work space of an update", "MiB", peak / 2**20, ratio=ratio, note=note)
    for name, difference in off.items():
        note = f"of the largest gradient; must be at most {TOLERANCE:g}"
        if name != BASELINE:
            yield Row.single(case, name, "largest difference of a gradient", "1", difference, note=note)
    worst = max(off, key=lambda name: off[name] if off[name] == off[name] else float("inf"))
    if not off[worst] <= TOLERANCE:
        raise RuntimeError(
            f"the gradients of {worst} differ from the loop's by {off[worst]:.2g} of the largest in {case}, but "
            f"{TOLERANCE:g} is allowed: look for the fault in {type(sides[worst]).__name__}"
        )


def run(settings: Settings) -> Iterator[Row]:
    """Measures both networks on both sizes of image.

    Raises:
        RuntimeError: when a contestant's gradients are not those of the loop.
    """
    for case, net, shape in cases(settings):
        yield from measure(case, net, shape, settings)
