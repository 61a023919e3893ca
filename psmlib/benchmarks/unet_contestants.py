"""Implementations compared by the benchmark of image networks; :mod:`psmlib.benchmarks.unets` describes them.

A :class:`Stretch` is for the contestants of Parallel Score Matching's Tables 7 to 9: partitions of time, each with its
networks, at generation and likelihood.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.bank.image_bank import ImageBank
from psmlib.kernels.bank_updates import adam_rates, adam_step
from psmlib.likelihood import log_likelihood
from psmlib.machine import streams
from psmlib.machine.checks import check_choice
from psmlib.machine.cuda_graph import Captured
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.sampling import grids, last, ode, sde
from psmlib.score import Score
from psmlib.training.image_steps import GraphSlot
from psmlib.training.optim import Adam

LR = 1e-4
PROCESS = VP(0.0, 10.0)
MODES = ("forward", "forward and backward", "whole step")
TASKS = {"Generation SDE": 1000, "Generation ODE": 4000, "Likelihood Estimation": 4000}
"""The tasks of Tables 7 to 9 with their numbers of evaluations."""


class OneByOne:
    """The library's loop over the networks.

    Args:
        bank: The networks; they are copied.
        x: Images. Shape: (K, n, C, H, W).
        target: Regression targets. Shape: that of x.
        t: Times. Shape: (K, n).

    Example:
        >>> from psmlib.nets import unet
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
        """The tensors held between two updates."""
        held = [*self.bank.tensors.values(), self.grad, *self.moments.state.values(), self.target]
        return held + [tensor for inputs in self.inputs for tensor in inputs]

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, running statistics and last gradients, a row for each network."""
        return self.bank.params, self.bank.buffers, self.grad

    def derive(self, k: int, mode: str) -> None:
        """Forward and, unless that is all, backward through network k."""
        self.grad[k].zero_()
        with torch.enable_grad():
            loss = F.mse_loss(self.bank.network(k)(*self.inputs[k]), self.target[k])
            if mode != MODES[0]:
                loss.backward()

    def turn(self, mode: str, updates: int) -> None:
        """Does some updates of every network, each up to the stage ``mode``."""
        for k in range(len(self.bank)):
            part = slice(k, k + 1)
            params, grad, moments = self.bank.params[part], self.grad[part], self.moments.part(part)
            for i in range(updates):
                self.derive(k, mode)
                if mode == MODES[-1]:
                    moments.step(params, grad, lr=LR, count=self.count + i + 1)
        self.count += updates * (mode == MODES[-1])


class Vmap(OneByOne):
    """One network mapped over stacked parameters; arguments as of :class:`OneByOne`.

    The stacks lie layer by layer, since vmap updates running statistics in place only where a layer is contiguous.
    """

    note = "torch.func.vmap of one network over stacked parameters"

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        super().__init__(bank, x, target, t)
        self.inputs = [torch.stack(tensors) for tensors in zip(*self.inputs, strict=True)]
        self.one, rows, self.pairs = self.bank.network(0), super().result(), []
        self.layers = [torch.zeros_like(each) for each in rows]
        named = [list(each) for each in (self.one.named_parameters(), self.one.named_buffers())]
        places = zip(rows, self.layers, [*named, named[0]], strict=True)
        params, self.buffers, grads = (self._stacked(*each) for each in places)
        self.params = {name: nn.Parameter(layer) for name, layer in params.items()}
        for name, grad in grads.items():
            self.params[name].grad = grad

    def _stacked(self, rows: Tensor, layers: Tensor, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Each tensor of all networks, copied from the bank's rows to a stack. Shapes: (K, *shape)."""
        K, found = len(rows), {}
        for name, one in tensors:
            shape, at = (K, *one.shape), one.storage_offset()
            row = rows.as_strided(shape, (rows.stride(0), *one.stride()), at)
            found[name] = layers.as_strided(shape, (one.numel(), *one.stride()), K * at).copy_(row)
            self.pairs.append((row, found[name]))
        return found

    @property
    def state(self) -> list[Tensor]:
        return [*super().state, *self.layers]

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        for row, layer in self.pairs:
            row.copy_(layer)
        return super().result()

    def _call(self, params: dict, buffers: dict, *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.one, (params, buffers), inputs)

    def turn(self, mode: str, updates: int) -> None:
        params, _, grad = self.layers
        for _ in range(updates):
            grad.zero_()
            with torch.enable_grad():
                out = torch.func.vmap(self._call)(self.params, self.buffers, *self.inputs)
                loss = (out - self.target).square().mean((1, 2, 3, 4)).sum()
                if mode != MODES[0]:
                    loss.backward()
            if mode == MODES[-1]:
                self.count += 1
                self.moments.step(params, grad, lr=LR, count=self.count)


class Graphs(OneByOne):
    """A CUDA graph of one update for each network, replayed on several streams.

    Args:
        bank, x, target, t: As of :class:`OneByOne`.
        streams: How many.
    """

    note = "one CUDA graph a network, replayed on streams"

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor, streams: int):
        super().__init__(bank, x, target, t)
        self.rates = bank.params.new_ones(len(bank), 2)
        self.streams = [torch.cuda.Stream(bank.device) for _ in range(streams if bank.device.type == "cuda" else 0)]
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

    def turn(self, mode: str, updates: int) -> None:
        for k in range(len(self.bank)):
            if (k, mode) not in self.recorded:
                self.recorded[k, mode] = self._record(k, mode)
        on = [torch.cuda.stream(stream) for stream in self.streams] or [nullcontext()]
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream(self.bank.device))
        for row in adam_rates(lambda i: LR, self.count, updates).to(self.rates):
            for k in range(len(self.bank)):
                with on[k % len(on)]:
                    self.rates[k].copy_(row)
                    self.recorded[k, mode]()
        for stream in self.streams:
            torch.cuda.current_stream(self.bank.device).wait_stream(stream)
        self.count += updates * (mode == MODES[-1])


class SharedGraph(OneByOne):
    """One CUDA graph into which the networks are copied in turn; arguments as of :class:`OneByOne`."""

    note = "one CUDA graph into which the networks are copied in turn, psmlib.training.image_steps.GraphSlot"
    modes = MODES[-1:]

    def __init__(self, bank: ImageBank, x: Tensor, target: Tensor, t: Tensor):
        super().__init__(bank, x, target, t)
        self.batches = [(*batch, None) for batch in zip(x, t, target, strict=True)]
        self.slot = GraphSlot(self.bank, PROCESS, x[0], t[0], None)

    def turn(self, mode: str, updates: int) -> None:
        rates = adam_rates(lambda i: LR, self.count, updates)
        for k, batch in enumerate(self.batches):
            self.slot.train(self.bank, k, self.moments, None, [batch] * updates, rates)
        self.count += updates


@dataclass(frozen=True)
class Stretch:
    """Some of a thousand equal time steps, on which the tasks of Tables 7 to 9 are timed.

    Attributes:
        steps: How many of them.
        around: The time in their middle, at which all of the paper's partitions have a border.

    Example:
        >>> stretch = Stretch(2)
        >>> stretch.times.tolist(), stretch.visited(Partition.equal(10)).edges
        ([0.099, 0.1, 0.101], (0.0, 0.1, 0.2, 1.0))
    """

    steps: int
    around: float = 0.1

    @property
    def times(self) -> Tensor:
        """Shape: (steps + 1,), float64."""
        return self.around + (torch.arange(self.steps + 1, dtype=torch.float64) - self.steps // 2) / 1000

    def visited(self, partition: Partition) -> Partition:
        """The blocks that the stretch lies in, and one on either side for the rest of time."""
        times = self.times
        first = bisect_right(partition.edges, float(times[0]) + 1e-9) - 1
        after = bisect_left(partition.edges, float(times[-1]) - 1e-9) + 1
        inside = partition.edges[first:after]
        return Partition(sorted({0.0, *inside, 1.0}), discrete=partition.discrete)

    def call(self, task: str, score: Score, x: Tensor, *, points: bool = False) -> Callable[[], object]:
        """A task on the stretch, as a call.

        Args:
            task: One of `TASKS`.
            score: The networks of the stretch.
            x: Noise, or images. Shape: (n, C, H, W).
            points: Whether the networks are those of points in time, which the paper's programs integrate by four Euler
                steps from one to the next instead of RK4.

        Raises:
            ValueError: for an unknown task.
        """
        check_choice("task", task, TASKS)
        ends = dict(t0=float(self.times[0]), t1=float(self.times[-1]))
        grid = grids.uniform(*ends.values(), 4 * self.steps) if points else self.times
        method = "euler" if points else "rk4"
        if task == "Generation SDE":
            return lambda: last(sde(score, score.process, x, self.times.flip(0), generator=streams.stream(7)))
        if task == "Generation ODE":
            return lambda: last(ode(score, score.process, x, grid.flip(0), method=method))
        how = dict(divergence="hutchinson", grid=grid, method=method, **ends)
        return partial(log_likelihood, score, score.process, x, **how)
