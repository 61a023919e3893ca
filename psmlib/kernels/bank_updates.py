r"""Adam updates of a whole bank in torch: gradient and step of K networks, for a sequence of batches.

*Kernel profile.* For K networks of widths F-a-b-c-d and batches of B rows a step does about
:math:`6KB(Fa+ab+bc+cd)` operations: forward, deltas and weight gradients, 2 each. For K = 200, B = 512 and the paper's
4-100-150-100-2 that is 19 Gflop. Parameters and Adam's moments are read and written once, 7 x 25 MB. In single steps,
activations and deltas go through memory about four times each, 1.1 GB; fused they are written once and read once,
0.6 GB. So there are two fused Triton kernels (:mod:`psmlib.kernels.fused_updates`): one carries a tile of rows forward
and back through all layers on the chip and stores activations and deltas, the other computes a tile of a weight
gradient from them and takes Adam's step with it at once, so that no gradient is ever written. It also renews the copies
of the hidden matrices that the first one reads, laid out and rounded for tensor cores, another 50 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP
from psmlib.machine.cuda_graph import Captured

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba, 2015)."""


def adam_rates(rate: Callable[[int], float], done: int, n: int) -> Tensor:
    r"""What Adam's steps number done + 1 to done + n multiply by.

    Args:
        rate: Learning rate of update i, counted from 0.
        done: Updates done before.
        n: How many.

    Returns:
        :math:`\eta/(1-\beta_1^i)` and :math:`1/\sqrt{1-\beta_2^i}` for each. Shape: (n, 2), float64.

    Example:
        >>> [[round(float(v), 4) for v in row] for row in adam_rates(lambda i: 1e-3, 0, 2)]
        [[0.01, 31.6228], [0.0053, 22.3663]]
    """
    return torch.tensor([adam_rate(rate(i - 1), i) for i in range(done + 1, done + n + 1)], dtype=torch.float64)


def adam_rate(lr: float, count: int) -> tuple[float, float]:
    """A row of :func:`adam_rates`, for the step number ``count``, from 1."""
    return lr / (1 - BETA1**count), 1 / math.sqrt(1 - BETA2**count)


def adam_step(params: Tensor, grad: Tensor, mean: Tensor, square: Tensor, rates: Tensor | tuple[float, float]) -> None:
    """Adam's step (Kingma and Ba, 2015, Algorithm 1); ``grad`` is overwritten.

    Args:
        params: Changed in place, as are the moments. Shape: any.
        grad: Shape: that of ``params``.
        mean: First moments, likewise.
        square: Second moments, likewise.
        rates: A row of :func:`adam_rates`, as numbers or, where a recorded graph is to be given new ones, as a tensor
            on the device. Shape: (2,).

    Example:
        >>> p, g = torch.ones(1, 3), torch.full((1, 3), 2.0)
        >>> adam_step(p, g, *torch.zeros(2, 1, 3), adam_rates(lambda i: .1, 0, 1)[0])
        >>> p                                       # the first step is lr * sign(g)
        tensor([[0.9000, 0.9000, 0.9000]])
    """
    mean.lerp_(grad, 1 - BETA1)
    square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
    step, scale = rates
    root = torch.sqrt(square, out=grad).mul_(scale).add_(EPS)
    if isinstance(step, Tensor):
        params.addcdiv_(mean, root.div_(step), value=-1)
    else:
        params.addcdiv_(mean, root, value=-step)


class BankUpdates:
    """Updates by batched matrix products, all K networks at once: the reference, used where Triton is not.

    Args:
        widths: Layer widths, input first.
        params: Parameters; changed in place. Shape: (K, P).
        mean: Adam's first moments; changed in place. Shape: (K, P).
        square: Adam's second moments, likewise. Shape: (K, P).
        batch: Rows of a batch, B.
        average: Moving average of the parameters, changed in place, or None. Shape: (K, P).
        ema: Its decay.

    Example:
        >>> from psmlib.kernels.bank_mlp import parameter_count
        >>> g = torch.Generator().manual_seed(0)
        >>> params = torch.randn(3, parameter_count([4, 8, 2]), generator=g)
        >>> step = BankUpdates([4, 8, 2], params, *torch.zeros(2, *params.shape), batch=16)
        >>> h, y = torch.randn(5, 3, 16, 4, generator=g), torch.randn(5, 3, 16, 2, generator=g)
        >>> before = step.run(h, y, adam_rates(lambda i: .01, 0, 5))
        >>> bool((step.run(h, y, adam_rates(lambda i: .01, 5, 5)) < before).all())
        True
    """

    network: ClassVar[type[BankMLP]] = BankMLP
    weighs: ClassVar[bool] = True
    """Whether rows may have weights."""

    def __init__(
        self, widths: Sequence[int], params: Tensor, mean: Tensor, square: Tensor, *, batch: int,
        average: Tensor | None = None, ema: float = 0.0,
    ):  # fmt: skip
        self.widths, self.params, self.mean, self.square = tuple(widths), params, mean, square
        self.batch, self.average, self.ema = batch, average, ema
        self._total = params.new_zeros(len(params))
        self._runs: dict[tuple[int, bool], tuple[list[Tensor], Captured]] = {}
        self._prepare()

    @staticmethod
    def copied(widths: Sequence[int]) -> int:
        """Numbers kept for each network beside its parameters and the work of a step."""
        return 0

    def _prepare(self) -> None:
        """Allocates the buffers of one step."""
        self._work = self.network(self.widths, self.params.new_empty(len(self.params), self.batch, self.widths[0]))
        self._grad = torch.empty_like(self.params)

    def gradient(self, h: Tensor, target: Tensor, grad: Tensor, weight: Tensor | None = None) -> Tensor:
        """Writes the gradient of the mean squared error into ``grad``, (K, P); returns the errors, (K,)."""
        return self._work.gradient(self.params, h, target, grad, weight)

    def one(self, h: Tensor, target: Tensor, rates: Tensor, weight: Tensor | None = None) -> None:
        """One update; its losses are added to the others of a run.

        Args:
            h: Inputs. Shape: (K, B, F).
            target: Shape: (K, B, out).
            rates: A row of :func:`adam_rates`. Shape: (2,).
            weight: Of each row's squared error, or None. Shape: (K, B).
        """
        self._total += self.gradient(h, target, self._grad, weight)
        adam_step(self.params, self._grad, self.mean, self.square, rates)
        if self.average is not None:
            self.average.lerp_(self.params, 1 - self.ema)

    def run(self, h: Tensor, target: Tensor, rates: Tensor, weight: Tensor | None = None) -> Tensor:
        """Some updates, one batch each.

        Args:
            h: Inputs. Shape: (n, K, B, F).
            target: Shape: (n, K, B, out).
            rates: From :func:`adam_rates`. Shape: (n, 2).
            weight: Of each row's squared error, or None. Shape: (n, K, B).

        Returns:
            Mean losses, before each update. Shape: (K,).

        Raises:
            ValueError: when the batches are not of the shape that this was made for.
        """
        n, shape = len(h), (len(self.params), self.batch)
        if h.shape[1:3] != shape or target.shape[:3] != h.shape[:3]:
            raise ValueError(f"batches must be of shape (n, {shape[0]}, {shape[1]}, ...), got {tuple(h.shape)}")
        given = [h, target, rates] if weight is None else [h, target, rates, weight]
        key = n, weight is None
        if key not in self._runs:
            self._runs[key] = self._record([self.params.new_ones(tensor.shape) for tensor in given])
        buffers, steps = self._runs[key]
        for held, tensor in zip(buffers, given, strict=True):
            held.copy_(tensor)
        self._begin()
        steps()
        return self._means(n)

    def _begin(self) -> None:
        """Prepares for the first of some updates."""
        self._total.zero_()

    def _means(self, n: int) -> Tensor:
        """Mean losses of the n updates since. Shape: (K,)."""
        return self._total / n

    @property
    def _changed(self) -> list[Tensor]:
        """The tensors that an update changes and the next one reads."""
        average = [] if self.average is None else [self.average]
        return [self.params, self.mean, self.square, self._total, *average]

    def _record(self, buffers: list[Tensor]) -> tuple[list[Tensor], Captured]:
        """The updates on buffers of their own, recorded; the recording runs on what is in them."""

        def steps() -> None:
            for batch in zip(*buffers, strict=True):
                self.one(*batch)

        return buffers, Captured(steps, self.params.device, self._changed)
