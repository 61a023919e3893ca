"""A chunk of updates: how networks of each kind take their steps.

``fit`` leaves to these classes what differs between a bank of MLPs, which has a gradient of its own and takes
a step for many networks at once, and a bank of image networks, whose gradient is automatic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from psmlib.batches import make_batch, noised
from psmlib.gaussian_path import Process
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.memory import available
from psmlib.nets.bank import Bank, stream
from psmlib.nets.image_bank import ImageBank
from psmlib.nets.image_module import ImageModule
from psmlib.optim import Adam
from psmlib.partition import Partition

CHUNK = 50
"""Updates between two looks at the loss; random numbers are drawn a chunk at a time."""

_GLOBAL_GENERATOR = threading.Lock()


@dataclass
class BankSteps:
    """Updates of a bank of MLPs.

    Args:
        bank: The networks; changed in place.
        data: As in :func:`psmlib.training.fit`; so are all others but ``rate``.
        process: The Gaussian path.
        partition: The blocks of the whole bank.
        objective: Makes the targets.
        batch_size: Points per step and network.
        seed: Of the batches.
        rate: The learning rate of update i.
        log_share: Share of training times drawn log-uniformly.
        t_min: Where log-uniform times start in the first block.
        ema: Decay of the moving average per step, or None.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> from psmlib.objectives import Denoising
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> bank = Bank(Plain(), 1)
        >>> steps = BankSteps(bank, HG(), VP(0., 10.), SA, Denoising(), 8, 0, lambda i: 1e-3, 0., 1e-5, None)
        >>> steps.run(slice(0, 1), Adam(bank.params), torch.empty_like(bank.params), None, 0, 2).shape
        torch.Size([1])
    """

    bank: Bank
    data: object
    process: Process
    partition: Partition
    objective: object
    batch_size: int
    seed: int
    rate: Callable[[int], float]
    log_share: float
    t_min: float
    ema: float | None

    together: ClassVar[bool] = True
    """Whether an accelerator should be given all networks at once."""

    def planned(self, networks: int) -> int:
        """Bytes for the work of so many networks at once."""
        widths, size = self.bank.widths, self.bank.params.element_size()
        return size * self.batch_size * networks * (3 * sum(widths) + CHUNK * 2 * widths[0])

    def draw(self, make: Callable, k: int, done: int) -> tuple[Tensor, ...]:
        """A chunk of batches for network k: a stream is addressed by the chunk, so resuming needs no state of it."""
        block = self.bank.first + k
        generator = stream(self.seed, block, 1, done // CHUNK)
        return make(
            self.bank, self.data, self.process, self.partition, self.objective, block, CHUNK * self.batch_size,
            generator, self.log_share, self.t_min,
        )  # fmt: skip

    def average_in(self, average: Bank | ImageBank | None, part: slice) -> None:
        """Lets the moving average follow by one step; running statistics are means already and are copied."""
        if average is not None:
            for name, tensor in average.tensors.items():
                weight = 1 - self.ema if name == "params" else 1.0
                tensor[part].lerp_(self.bank.tensors[name][part], weight)

    def run(
        self, part: slice, moments: Adam, grad: Tensor, average: Bank | ImageBank | None, done: int, n: int
    ) -> Tensor:
        """Does n updates for some networks.

        Args:
            part: Which networks.
            moments: The optimiser of all networks.
            grad: Room for the gradients of all networks. Shape: (K, P).
            average: The moving average of the networks, or None.
            done: Updates done before.
            n: How many to do; they must not go beyond the chunk that ``done`` lies in.

        Returns:
            Their mean losses. Shape: (K of the part,).
        """
        bank, B = self.bank, self.batch_size
        batches = [self.draw(make_batch, k, done) for k in range(part.start, part.stop)]
        inputs = torch.stack([b[0] for b in batches]).unflatten(1, (CHUNK, B)).transpose(0, 1).contiguous()
        targets = torch.stack([b[1] for b in batches]).unflatten(1, (CHUNK, B)).transpose(0, 1).contiguous()
        params, grads = bank.params[part], grad[part]
        moments = moments.part(part)
        work, total = BankMLP(bank.widths, inputs[0]), params.new_zeros(len(batches))
        start = done % CHUNK
        for i in range(n):
            total += work.gradient(params, inputs[start + i], targets[start + i], grads)
            moments.step(params, grads, lr=self.rate(done + i), count=done + i + 1)
            self.average_in(average, part)
        return total / n


@dataclass
class ImageSteps(BankSteps):
    """Updates of a bank of image networks; arguments as of :class:`BankSteps`."""

    together: ClassVar[bool] = False

    def planned(self, networks: int) -> int:
        shape = self.data.shape[1:] if isinstance(self.data, Tensor) else self.data.sample(1, stream(0)).shape[1:]
        net, size = self.bank.network(0), self.bank.params.element_size()
        images = 6 * 8 * CHUNK * self.batch_size * shape.numel()  # six numbers a value in double precision, at the peak
        # every layer at full resolution, and all that backward keeps of it: a bound that costs nothing to find
        most = 8 * size * self.batch_size * shape[1:].numel() * sum(len(p) for p in net.parameters() if p.dim() > 1)
        if 20 * networks * most < available(self.bank.device):
            return networks * (most + images)
        own = net.memory(1, shape[1:], training=False)
        return networks * (net.memory(self.batch_size, shape[1:]) - own + images)

    def run(
        self, part: slice, moments: Adam, grad: Tensor, average: Bank | ImageBank | None, done: int, n: int
    ) -> Tensor:
        return torch.stack([self._alone(k, moments, grad, average, done, n) for k in range(part.start, part.stop)])

    def _alone(self, k: int, moments: Adam, grad: Tensor, average, done: int, n: int) -> Tensor:
        """Does n updates for network k; returns its mean loss. Shape: ()."""
        x, t, target = self.draw(noised, k, done)
        net, part = self.bank.network(k), slice(k, k + 1)
        self.bank.bind_gradients(k, grad[k])
        params, grads, moments = self.bank.params[part], grad[part], moments.part(part)
        total, start = params.new_zeros(()), done % CHUNK
        net.train().requires_grad_(True)
        try:
            for i in range(n):
                rows = slice((start + i) * self.batch_size, (start + i + 1) * self.batch_size)
                grads.zero_()
                with torch.enable_grad():
                    said = self._call(net, net.inputs(x[rows], t[rows], self.process), k, done + i)
                    loss = F.mse_loss(said, target[rows])
                    loss.backward()
                total += loss.detach()
                moments.step(params, grads, lr=self.rate(done + i), count=done + i + 1)
                self.average_in(average, part)
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
            torch.manual_seed(stream(self.seed, self.bank.first + k, 2, update).initial_seed())
            return net(*inputs)


STEPS: dict[type, type[BankSteps]] = {Bank: BankSteps, ImageBank: ImageSteps}
"""Which class trains which bank."""
