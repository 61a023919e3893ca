"""The contestants of the benchmark of image networks; what they are is said in :mod:`psmlib.benchmarks.unets`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.benchmarks.grouped import Grouped
from psmlib.kernels.bank_updates import adam_rates, adam_step
from psmlib.machine.cuda_graph import Captured
from psmlib.process import VP
from psmlib.training.image_steps import Desk
from psmlib.training.optim import Adam

LR = 1e-4
PROCESS = VP(0.0, 10.0)
MODES = ("forward", "forward and backward", "whole step")


class OneByOne:
    """The library's loop over the networks.

    Args:
        bank: The networks; they are copied.
        x: Images. Shape: (K, n, C, H, W).
        target: What the networks shall say. Shape: that of x.
        t: Times. Shape: (K, n).

    Example:
        >>> from psmlib.nets import unet
        >>> bank, x = ImageBank(unet.small(dim=8), 2), torch.zeros(2, 3, 1, 8, 8)
        >>> loop = OneByOne(bank, x, x + 1, torch.rand(2, 3))
        >>> loop.turn("whole step", 5)
        >>> bool((loop.bank.params == bank.params).all())
        False
    """

    note = "one network after another, as psmlib.training.loop.fit runs them on a CPU"
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

    note = "K groups of one wide network's convolutions, psmlib.benchmarks.grouped"
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

    note = "one CUDA graph to which the networks come in turn, psmlib.training.image_steps.Desk"
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
