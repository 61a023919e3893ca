"""Implementations compared by the benchmark of a bank's training step; :mod:`psmlib.benchmarks.bank` describes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.plain import sequential
from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref
from psmlib.kernels.bank_updates import BankUpdates, adam_rates

LR = 1e-3
STAGES = ("forward", "forward and backward", "step")


class Contestant:
    """One implementation, with its own copy of the networks; ``call(stage)`` returns a function that runs one turn.

    A subclass has ``forward(h)``, which returns the outputs, (K, B, out), and ``backward(h, target)``, which computes
    the gradients and stores them for :meth:`adam`.
    """

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        self.widths, self.h, self.target = bank.widths, h, target
        self.params = bank.params.clone()

    def modules(self) -> list[nn.Sequential]:
        """The networks as torch modules."""
        return [sequential(flat, self.widths).to(flat.device) for flat in self.params]

    def adam(self) -> None:
        """Takes Adam's step with the stored gradients."""
        self.optimiser.step()

    def step(self) -> None:
        """One turn of whole steps."""
        for h, target in zip(self.h, self.target, strict=True):
            self.backward(h, target)
            self.adam()

    def call(self, stage: str) -> Callable[[int], object]:
        """One turn of a stage, for :func:`psmlib.benchmarks.timing.interleave`."""
        if stage == "step":
            return lambda i: self.step()
        if stage == "forward":
            return torch.no_grad()(lambda i: [self.forward(h) for h in self.h])
        return lambda i: [self.backward(h, y) for h, y in zip(self.h, self.target, strict=True)]

    def flat(self) -> Tensor:
        """Parameters as a bank keeps them. Shape: (K, P)."""
        return self.params.detach()


class OneByOne(Contestant):
    """A module and an optimiser for each network."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        self.nets = self.modules()
        self.optimisers = [torch.optim.Adam(net.parameters(), lr=LR) for net in self.nets]

    def forward(self, h: Tensor) -> list[Tensor]:
        return [net(x) for net, x in zip(self.nets, h, strict=True)]

    def backward(self, h: Tensor, target: Tensor) -> None:
        for net, optimiser, x, y in zip(self.nets, self.optimisers, h, target, strict=True):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()

    def adam(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()

    def flat(self) -> Tensor:
        turned = [[p.mT if p.dim() == 2 else p for p in net.parameters()] for net in self.nets]
        return torch.stack([torch.cat([p.flatten() for p in each]) for each in turned]).detach()


class Vmap(Contestant):
    """Stacked modules under torch.func."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        nets = self.modules()
        self.stack, _ = torch.func.stack_module_state(nets)
        self.optimiser = torch.optim.Adam(self.stack.values(), lr=LR)

        def output(params: dict, x: Tensor) -> Tensor:
            return torch.func.functional_call(nets[0], params, (x,))

        self._outputs = torch.func.vmap(output)
        self._gradient = torch.func.vmap(torch.func.grad(lambda p, x, y: (output(p, x) - y).square().mean()))

    def forward(self, h: Tensor) -> Tensor:
        return self._outputs(self.stack, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        for name, grad in self._gradient(self.stack, h, target).items():
            self.stack[name].grad = grad

    def flat(self) -> Tensor:
        return torch.cat([(p.mT if p.dim() == 3 else p).flatten(1) for p in self.stack.values()], 1).detach()


class Products(Contestant):
    """Batched matrix products and autograd."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor, compiled: bool = False):
        super().__init__(bank, h, target)
        self.params.requires_grad_(True)
        self.optimiser = torch.optim.Adam([self.params], lr=LR, capturable=compiled)
        self._loss = torch.compile(self._plain, mode="reduce-overhead") if compiled else self._plain

    def _plain(self, params: Tensor, h: Tensor, target: Tensor) -> Tensor:
        return (bank_mlp_ref(params, self.widths, h) - target).square().mean((1, 2)).sum()

    def forward(self, h: Tensor) -> Tensor:
        return bank_mlp_ref(self.params, self.widths, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        self.optimiser.zero_grad()
        self._loss(self.params, h, target).backward()


class Ours(Contestant):
    """An engine of this library, :class:`BankUpdates` or a subclass."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor, kind: type[BankUpdates] = BankUpdates):
        super().__init__(bank, h, target)
        moments = torch.zeros(2, *self.params.shape, device=h.device)
        self.engine, self.done = kind(self.widths, self.params, *moments, batch=h.shape[2]), 0
        self.grad, self.work = torch.empty_like(self.params), BankMLP(self.widths, h[0])

    def forward(self, h: Tensor) -> Tensor:
        return self.work.forward(self.params, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        self.engine.gradient(h, target, self.grad)

    def step(self) -> None:
        self.engine.run(self.h, self.target, adam_rates(lambda i: LR, self.done, len(self.h)))
        self.done += len(self.h)


class Loop(Contestant):
    """This library's engine, one network after another."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        parts = [bank.copy(params=flat[None]) for flat in bank.params]
        self.ours = [Ours(part, h[:, k : k + 1], target[:, k : k + 1]) for k, part in enumerate(parts)]

    def forward(self, h: Tensor) -> list[Tensor]:
        return [each.forward(h[k : k + 1]) for k, each in enumerate(self.ours)]

    def backward(self, h: Tensor, target: Tensor) -> None:
        for k, each in enumerate(self.ours):
            each.backward(h[k : k + 1], target[k : k + 1])

    def step(self) -> None:
        for each in self.ours:
            each.step()

    def flat(self) -> Tensor:
        return torch.cat([each.params for each in self.ours])
