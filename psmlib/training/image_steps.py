"""Updates of a bank of image networks, whose gradient is automatic.

Engines: "loop" trains each network where it lies; "graph" copies each in turn into the fixed buffers of a
:class:`GraphSlot`, whose step is recorded as a CUDA graph where there is CUDA.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.kernels.bank_updates import adam_rates, adam_step
from psmlib.machine.cuda_graph import Captured
from psmlib.machine.memory import available
from psmlib.machine.streams import stream
from psmlib.nets.image_module import ImageModule
from psmlib.training.guarded import CHUNK
from psmlib.training.optim import Adam
from psmlib.training.steps import Steps, average_in, run_tensors

_GLOBAL_GENERATOR = threading.Lock()


class GraphSlot:
    """Fixed buffers for a CUDA graph; each network is copied in, trained for a chunk and copied back.

    A graph knows tensors by where they are. A graph for each of a thousand networks would hold a thousand sets of
    activations; copying a network in and out for fifty steps costs less than one of them.

    Args:
        bank: Whose networks these are.
        process: The Gaussian path.
        x: A batch of noised images, for its shape. Shape: (B, C, H, W).
        t: Their times, for their dtype. Shape: (B,).
        ema: Decay of a moving average, or None.
        weighted: Whether times have weights.

    Example:
        >>> from psmlib.nets import unet
        >>> from psmlib.process import VP
        >>> bank, x, t = ImageBank(unet.small(dim=8), 2), torch.zeros(4, 1, 8, 8), torch.full((4,), .5)
        >>> moments, rates = Adam(bank.params), adam_rates(lambda i: 1e-3, 0, 5)
        >>> slot = GraphSlot(bank, VP(), x, t, None)
        >>> first, then = (slot.train(bank, 1, moments, None, [(x, t, x, None)] * 5, rates) for _ in range(2))
        >>> bool(then < first)
        True
    """

    def __init__(self, bank: ImageBank, process, x: Tensor, t: Tensor, ema: float | None, weighted: bool = False):
        one = bank.copy(**{name: rows[:1] for name, rows in bank.tensors.items()})
        self.bank, self.process, self.moments = one, process, Adam(one.params)
        self.average, self.ema = None if ema is None else one.copy(), ema
        self.x, self.t, self.target = torch.zeros_like(x), torch.full_like(t, 0.5), torch.zeros_like(x)
        self.weight = torch.ones_like(x[:, 0, 0, 0]) if weighted else None
        self.rates, self.total = one.params.new_ones(2), one.params.new_zeros(())
        self._grad, self._net = torch.zeros_like(one.params), one.network(0)
        one.bind_gradients(0, self._grad[0])
        self._net.train().requires_grad_(True)
        self._held = run_tensors(one, self.moments, self.average)
        self._step = Captured(self._one, one.device, [*self._held.values(), self.total])

    def _one(self) -> None:
        """One update."""
        self._grad.zero_()
        with torch.enable_grad():
            loss = squared_error(self._net(*self._net.inputs(self.x, self.t, self.process)), self.target, self.weight)
            loss.backward()
        self.total += loss.detach()
        adam_step(self.bank.params, self._grad, *self.moments.state.values(), self.rates)
        average_in(self.average, self.bank, self.ema, slice(None))

    def train(
        self, bank: ImageBank, k: int, moments: Adam, average: ImageBank | None,
        batches: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]], rates: Tensor,
    ) -> Tensor:  # fmt: skip
        """Trains network k of a bank on some batches.

        Args:
            bank: The bank.
            k: Which network.
            moments: The optimiser of all networks.
            average: The moving average of all networks, or None.
            batches: Noised images, times, targets and weights or None, for each update.
            rates: From :func:`psmlib.kernels.bank_updates.adam_rates`. Shape: (n, 2).

        Returns:
            Its mean loss. Shape: ().
        """
        theirs, places = run_tensors(bank, moments, average), (self.x, self.t, self.target, self.weight, self.rates)
        for name, tensor in self._held.items():
            tensor.copy_(theirs[name][k : k + 1])
        self.total.zero_()
        for batch, row in zip(batches, rates.to(self.rates), strict=True):
            for place, given in zip(places, (*batch, row), strict=True):
                if place is not None:
                    place.copy_(given)
            self._step()
        for name, tensor in self._held.items():
            theirs[name][k : k + 1] = tensor
        return self.total / len(rates)


def squared_error(said: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over a batch of images, each with its weight. Shapes: (B, C, H, W) twice, (B,) -> ()."""
    if weight is None:
        return F.mse_loss(said, target)
    return ((said - target).square().flatten(1).mean(1) * weight).mean()


@dataclass
class ImageSteps(Steps):
    """Updates of a bank of image networks; arguments as of :class:`psmlib.training.steps.Steps`."""

    engines: ClassVar[tuple[str, ...]] = ("loop", "graph")

    def __post_init__(self):
        super().__post_init__()
        self._slot: GraphSlot | None = None
        if self.engine == "graph" and self._drops():
            raise ValueError('a graph cannot draw dropout from each network\'s own stream: use engine="loop"')

    def _drops(self) -> bool:
        return bool(self.bank.settings.get("dropout"))

    def _default_engine(self) -> str:
        return "graph" if self.bank.device.type == "cuda" and not self._drops() else "loop"

    def planned(self, networks: int) -> int:
        shape = self.data.shape[1:] if isinstance(self.data, Tensor) else self.data.sample(1, stream(0)).shape[1:]
        net, size, batch = self.bank.network(0), self.bank.params.element_size(), self.recipe.batch_size
        images = 6 * 8 * CHUNK * batch * shape.numel()  # six numbers a value in double precision, at the peak
        # every layer at full resolution, and all that backward keeps of it: a bound that costs nothing to find
        most = 8 * size * batch * shape[1:].numel() * sum(len(p) for p in net.parameters() if p.dim() > 1)
        if 20 * networks * most < available(self.bank.device):
            return networks * (most + images)
        own = net.memory(1, shape[1:], training=False)
        return networks * (net.memory(batch, shape[1:]) - own + images)

    def run(self, part: slice, moments: Adam, grad: Tensor, average: ImageBank | None, done: int, n: int) -> Tensor:
        one = self._alone if self.engine == "loop" else self._in_slot
        return torch.stack([one(k, moments, grad, average, done, n) for k in range(part.start, part.stop)])

    def _batches(self, k: int, done: int, n: int) -> list[tuple]:
        """The batches of network k for the next n updates: noised images, times, targets, weights or None."""
        return list(zip(*([None] * n if v is None else v for v in self.draw(k, done, n)), strict=True))

    def _in_slot(self, k: int, moments: Adam, grad: Tensor, average, done: int, n: int) -> Tensor:
        """As :meth:`_alone`, in the slot of the graph."""
        batches, recipe = self._batches(k, done, n), self.recipe
        if self._slot is None:
            self._slot = GraphSlot(self.bank, recipe.process, *batches[0][:2], recipe.ema, recipe.times.weighted)
        return self._slot.train(self.bank, k, moments, average, batches, adam_rates(recipe.rate, done, n))

    def _alone(self, k: int, moments: Adam, grad: Tensor, average, done: int, n: int) -> Tensor:
        """Does n updates for network k; returns its mean loss. Shape: ()."""
        net, part, rate = self.bank.network(k), slice(k, k + 1), self.recipe.rate
        self.bank.bind_gradients(k, grad[k])
        params, grads, moments = self.bank.params[part], grad[part], moments.part(part)
        total = params.new_zeros(())
        net.train().requires_grad_(True)
        try:
            for i, (x, t, target, weight) in enumerate(self._batches(k, done, n)):
                grads.zero_()
                with torch.enable_grad():
                    said = self._call(net, net.inputs(x, t, self.recipe.process), k, done + i)
                    loss = squared_error(said, target, weight)
                    loss.backward()
                total += loss.detach()
                moments.step(params, grads, lr=rate(done + i), count=done + i + 1)
                average_in(average, self.bank, self.recipe.ema, part)
        finally:  # whatever stopped the run, the network must not be left in training mode, nor hold on to ``grad``
            net.eval().requires_grad_(False).zero_grad()
        return total / n

    def _call(self, net: ImageModule, inputs: tuple[Tensor, ...], k: int, update: int) -> Tensor:
        """What network k says; if it drops values out, those that its own stream says."""
        if not net.settings.get("dropout"):
            return net(*inputs)
        devices = [self.bank.device] if self.bank.device.type == "cuda" else []
        # torch's dropout draws from the global generator alone, which all threads share
        with _GLOBAL_GENERATOR, torch.random.fork_rng(devices):
            torch.manual_seed(stream(self.recipe.seed, self.bank.first + k, 2, update).initial_seed())
            return net(*inputs)
