"""A training step of a bank of small networks: forward, backward and Adam for K networks of 4-100-150-100-2.

The contestants, with the same parameters, batches and learning rate:

* one by one: an `nn.Sequential` and a `torch.optim.Adam` for each network, the loop that anyone would write;
* vmap: `torch.func.vmap` of `grad` over stacked parameters, one Adam over the stack;
* products: batched matrix products by autograd and Adam; "compiled" is the same through torch.compile with CUDA graphs;
* psmlib, products: the gradient written out by hand; recorded as a graph on CUDA;
* psmlib, loop: the same for one network after another, as `fit` does on a CPU;
* psmlib, fused: the two Triton kernels, on CUDA alone.

Operations are those that cannot be spared, 6 K B (ab + ...) less the first layer's input gradients; bytes those of
parameters and moments, read and written once, with batches, activations and deltas written and read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from psmlib.benchmarks import peaks
from psmlib.benchmarks.plain import sequential
from psmlib.benchmarks.timing import Row, clock_of, interleave, quantiles, rows, work_space
from psmlib.kernels import fused_updates
from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref
from psmlib.kernels.bank_updates import BankUpdates, adam_rates
from psmlib.nets.bank import Bank
from psmlib.nets.mlp import Plain

LR = 1e-3
STAGES = ("forward", "forward and backward", "step")


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Args:
        networks: K.
        batch: Rows of a batch.
        steps: Steps in a turn.
        rounds: Timed turns.
        device: Where.
    """

    networks: int = 10
    batch: int = 512
    steps: int = 5
    rounds: int = 7
    device: str = "cpu"


SCALES = {
    "smoke": Settings(networks=3, batch=16, steps=2, rounds=2),
    "quick": Settings(),
    "full": Settings(networks=200, steps=10, rounds=3),
}


def operations(widths: tuple[int, ...], networks: int, batch: int) -> float:
    """Floating-point operations of a step that cannot be spared.

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


class Contestant:
    """Networks of its own; ``call(stage)`` gives a function that does a turn of steps of that stage."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        self.widths, self.h, self.target = bank.widths, h, target
        self.params = bank.params.clone()

    def forward(self, h: Tensor) -> Tensor:
        """Outputs. Shape: (K, B, out)."""
        raise TypeError(f"{type(self).__name__} does not define forward(h)")

    def backward(self, h: Tensor, target: Tensor) -> None:
        """Leaves the gradients where the step finds them."""
        raise TypeError(f"{type(self).__name__} does not define backward(h, target)")

    def adam(self) -> None:
        """Takes Adam's step by them."""
        self.optimiser.step()

    def step(self) -> None:
        """A turn of whole steps."""
        for h, target in zip(self.h, self.target, strict=True):
            self.backward(h, target)
            self.adam()

    def call(self, stage: str) -> Callable[[int], object]:
        """What :func:`psmlib.benchmarks.timing.interleave` calls."""
        if stage == "forward":
            return lambda i: [self.forward(h) for h in self.h]
        if stage == "step":
            return lambda i: self.step()
        return lambda i: [self.backward(h, y) for h, y in zip(self.h, self.target, strict=True)]

    def flat(self) -> Tensor:
        """Parameters as a bank keeps them. Shape: (K, P)."""
        return self.params.detach()


class OneByOne(Contestant):
    """A module and an optimiser for each network."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        self.nets = [sequential(flat, self.widths).to(flat.device) for flat in self.params]
        self.optimisers = [torch.optim.Adam(net.parameters(), lr=LR) for net in self.nets]

    def forward(self, h: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [net(x) for net, x in zip(self.nets, h, strict=True)]

    def backward(self, h: Tensor, target: Tensor) -> None:
        for net, optimiser, x, y in zip(self.nets, self.optimisers, h, target, strict=True):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()

    def adam(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()

    def flat(self) -> Tensor:
        linears = [[m for m in net if isinstance(m, nn.Linear)] for net in self.nets]
        parts = [[p.detach().flatten() for m in each for p in (m.weight.mT, m.bias)] for each in linears]
        return torch.stack([torch.cat(each) for each in parts])


class Vmap(Contestant):
    """Stacked modules under torch.func."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        nets = [sequential(flat, self.widths).to(flat.device) for flat in self.params]
        self.stack, _ = torch.func.stack_module_state(nets)
        self.optimiser, self.blank = torch.optim.Adam(self.stack.values(), lr=LR), nets[0]

        def loss(params: dict, x: Tensor, y: Tensor) -> Tensor:
            return (torch.func.functional_call(self.blank, params, (x,)) - y).square().mean()

        self._outputs = torch.func.vmap(lambda params, x: torch.func.functional_call(self.blank, params, (x,)))
        self._gradient = torch.func.vmap(torch.func.grad(loss))

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            return self._outputs(self.stack, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        for name, grad in self._gradient(self.stack, h, target).items():
            self.stack[name].grad = grad

    def flat(self) -> Tensor:
        at = [self.stack[f"{2 * i}.{kind}"] for i in range(len(self.widths) - 1) for kind in ("weight", "bias")]
        return torch.cat([(p.mT if p.dim() == 3 else p).flatten(1) for p in at], 1).detach()


class Products(Contestant):
    """Batched matrix products and autograd."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor, compiled: bool = False):
        super().__init__(bank, h, target)
        self.params.requires_grad_(True)
        self.optimiser = torch.optim.Adam([self.params], lr=LR, capturable=compiled)
        self._loss = self._compile(self._plain) if compiled else self._plain

    @staticmethod
    def _compile(f: Callable) -> Callable:
        return torch.compile(f, mode="reduce-overhead")

    def _plain(self, params: Tensor, h: Tensor, target: Tensor) -> Tensor:
        return (bank_mlp_ref(params, self.widths, h) - target).square().mean((1, 2)).sum()

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            return bank_mlp_ref(self.params, self.widths, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        self.optimiser.zero_grad()
        self._loss(self.params, h, target).backward()


class Ours(Contestant):
    """An engine of this library."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor, kind: type[BankUpdates] = BankUpdates):
        super().__init__(bank, h, target)
        moments = torch.zeros(2, *self.params.shape, device=h.device)
        self.engine, self.done = kind(self.widths, self.params, *moments, batch=h.shape[2]), 0
        self.grad = torch.empty_like(self.params)
        self.work = BankMLP(self.widths, h[0])

    def forward(self, h: Tensor) -> Tensor:
        return self.work.forward(self.params, h)

    def backward(self, h: Tensor, target: Tensor) -> None:
        (self.work if type(self.engine) is BankUpdates else self.engine).gradient(self.params, h, target, self.grad)

    def step(self) -> None:
        self.engine.run(self.h, self.target, adam_rates(lambda i: LR, self.done, len(self.h)))
        self.done += len(self.h)


class Fused(Ours):
    """The Triton kernels."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target, fused_updates.FusedUpdates)

    def backward(self, h: Tensor, target: Tensor) -> None:
        self.engine.gradient(h, target, self.grad)


class Loop(Contestant):
    """Ours, one network after another."""

    def __init__(self, bank: Bank, h: Tensor, target: Tensor):
        super().__init__(bank, h, target)
        parts = [bank.copy(flat[None]) for flat in bank.params]
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


def contestants(settings: Settings) -> dict[str, Contestant]:
    """All that the device can run, from the same networks and batches."""
    bank, g = Bank(Plain(), settings.networks, device=settings.device), torch.Generator().manual_seed(0)
    shape = (settings.steps, settings.networks, settings.batch)
    h, target = (torch.randn(*shape, w, generator=g).to(settings.device) for w in (bank.widths[0], bank.widths[-1]))
    given = bank, h, target
    made = {"one by one": OneByOne(*given), "vmap": Vmap(*given), "products": Products(*given)}
    if torch.device(settings.device).type == "cuda":
        made["products, compiled"] = Products(*given, compiled=True)
        if fused_updates.triton is not None:
            made["psmlib, fused"] = Fused(*given)
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
        RuntimeError: when contestants differ in the parameters that they reach by more than a step of Adam explains.
    """
    made, device = contestants(settings), settings.device
    widths, K, B = Plain().widths, settings.networks, settings.batch
    case = f"{K} networks of {'-'.join(map(str, widths))}, batch {B}, {device}"
    for each in made.values():
        each.step()
    ahead = {name: each.flat().clone() for name, each in made.items()}
    for stage in STAGES:
        calls = {name: each.call(stage) for name, each in made.items()}
        taken = interleave(calls, settings.rounds, clock=clock_of(device))
        measure = f"network-steps a second, {stage}"
        yield from rows(case, taken, "one by one", NOTES, work=K * settings.steps, measure=measure)
    amounts = {"arithmetic": ("GFLOP/s", operations), "traffic": ("GB/s", traffic)}
    for name, each in taken.items():
        for what, (unit, count) in amounts.items():
            rate = quantiles([1e-9 * count(widths, K, B) * settings.steps / s for s in each.seconds])
            note = f"{count(widths, K, B):.3g} of them a step cannot be spared"
            yield Row(case, name, f"{what} of a step", unit, len(each.seconds), rate, warm_up=each.warm_up, note=note)
        held, how = work_space(made[name].call("step"), device)
        yield Row.single(case, name, "most memory at a time in a step", "MiB", held / 2**20, note=how)
    yield from peaks.ceilings(case, peaks.Settings(device=device, side=1024, megabytes=256, rounds=5))
    worst = max(float((flat - ahead["one by one"]).abs().max()) for flat in ahead.values())
    bound = 2 * LR * settings.steps
    note = f"parameters after {settings.steps} steps; must be at most {bound:g}, what Adam can move by rounding alone"
    yield Row.single(case, "all", "largest difference", "1", worst, note=note)
    if not worst <= bound:
        raise RuntimeError(
            f"the parameters differ by {worst:.2g} after {settings.steps} steps, but {bound:g} is allowed: "
            "look for the fault in psmlib.kernels.bank_updates"
        )
