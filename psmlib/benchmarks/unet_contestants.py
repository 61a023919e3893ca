"""Implementations compared by the benchmark of image networks; :mod:`psmlib.benchmarks.unets` describes them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.bank.image_bank import ImageBank
from psmlib.kernels.bank_updates import adam_rates, adam_step
from psmlib.machine.cuda_graph import Captured
from psmlib.process import VP
from psmlib.training.image_steps import GraphSlot
from psmlib.training.optim import Adam

LR = 1e-4
PROCESS = VP(0.0, 10.0)
MODES = ("forward", "forward and backward", "whole step")


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
