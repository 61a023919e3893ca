"""Optimisers over flat parameter vectors of a bank, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_updates import adam_rate, adam_step


class Adam:
    """Adam (Kingma and Ba, 2015, Algorithm 1), in place on parameters of shape (K, P).

    Args:
        params: Takes shape, dtype and device from them.
        widths: Layer widths; not used here.

    Example:
        >>> p, g = torch.ones(1, 3), torch.full((1, 3), 2.0)
        >>> Adam(p).step(p, g, lr=.1, count=1)
        >>> p                                       # the first step is lr * sign(g)
        tensor([[0.9000, 0.9000, 0.9000]])
    """

    def __init__(self, params: Tensor, widths: Sequence[int] = ()):
        self.widths = tuple(widths)
        self.state = {"mean": torch.zeros_like(params), "square": torch.zeros_like(params)}

    def part(self, which: slice) -> Adam:
        """The optimiser of some of the networks, sharing memory."""
        other = object.__new__(type(self))
        other.widths, other.state = self.widths, {name: tensor[which] for name, tensor in self.state.items()}
        return other

    def step(self, params: Tensor, grad: Tensor, *, lr: float, count: int) -> None:
        """Moves ``params`` by one step; ``count`` starts at 1. ``grad`` is overwritten."""
        adam_step(params, grad, self.state["mean"], self.state["square"], adam_rate(lr, count))


class Soap(Adam):
    r"""Adam in the eigenbasis of Shampoo's preconditioner (SOAP: Vyas et al., 2024, Algorithm 3).

    For a layer's gradient G (weight and bias as one matrix) keep :math:`L = E[GG^T]` and :math:`R = E[G^TG]`, with
    eigenvectors :math:`Q_L, Q_R`; run Adam on :math:`Q_L^T G Q_R` and turn its step back. The eigenvectors follow
    by one power iteration and a QR factorisation every few steps. First moments live in the turned basis.

    Example:
        >>> p = torch.ones(1, 3 * 2, dtype=torch.float64)          # one layer: 2 inputs and a bias, 2 outputs
        >>> soap, A = Soap(p, [2, 2]), torch.diag(torch.tensor([1., 10., 100., 1e3, 1e4, 1e5], dtype=torch.float64))
        >>> for i in range(300):
        ...     soap.step(p, p @ A, lr=.1 * (1 - i / 300), count=i + 1)
        >>> bool(p.abs().max() < 1e-2)
        True
    """

    beta1, beta2, eps, shampoo, every, refresh = 0.9, 0.99, 1e-8, 0.95, 4, 20

    def __init__(self, params: Tensor, widths: Sequence[int] = ()):
        super().__init__(params, widths)
        if len(self.widths) < 2:
            raise ValueError("SOAP works on layers: give it the widths of the network, as in Soap(params, [4, 8, 2])")
        for i, (a, b) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            for name, size in ((f"left{i}", a + 1), (f"right{i}", b)):
                self.state[name] = params.new_zeros(len(params), size, size)
                eye = torch.eye(size, dtype=params.dtype, device=params.device)
                self.state[f"{name}_basis"] = eye.repeat(len(params), 1, 1)

    def step(self, params: Tensor, grad: Tensor, *, lr: float, count: int) -> None:
        at, root_scale = 0, math.sqrt(1 - self.beta2**count)
        scale = root_scale / (1 - self.beta1**count)  # both bias corrections at once
        for i, (a, b) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            size = (a + 1) * b
            flat = (params, grad, self.state["mean"], self.state["square"])
            layer, *cut = (v[:, at : at + size].unflatten(1, (a + 1, b)) for v in flat)
            layer.add_(self._turn(i, *cut, count, self.eps * root_scale), alpha=-lr * scale)
            at += size

    def _turn(self, i: int, grad: Tensor, mean: Tensor, square: Tensor, count: int, eps: float) -> Tensor:
        """The step of one layer, before bias correction. Shapes: (K, a + 1, b)."""
        left, right = self.state[f"left{i}"], self.state[f"right{i}"]
        if count == 1 or count % self.every == 0:
            share = 1.0 if count == 1 else 1 - self.shampoo
            left.lerp_(grad @ grad.mT, share)
            right.lerp_(grad.mT @ grad, share)
        if count == 1:
            self.state[f"left{i}_basis"].copy_(torch.linalg.eigh(left)[1])
            self.state[f"right{i}_basis"].copy_(torch.linalg.eigh(right)[1])
        QL, QR = self.state[f"left{i}_basis"], self.state[f"right{i}_basis"]
        turned = torch.bmm(torch.bmm(QL.mT, grad), QR)
        mean.lerp_(turned, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(turned, turned, value=1 - self.beta2)
        root = square.sqrt().add_(eps)
        step = torch.bmm(torch.bmm(QL, torch.div(mean, root, out=root)), QR.mT)
        if count % self.refresh == 0:
            self._follow(left, QL, mean, square, 1)
            self._follow(right, QR, mean, square, 2)
        return step

    @staticmethod
    def _follow(stat: Tensor, basis: Tensor, mean: Tensor, square: Tensor, axis: int) -> None:
        """Moves a basis towards the eigenvectors of ``stat``, and the moments with it."""
        image = stat @ basis
        order = (basis * image).sum(1).argsort(1, descending=True)  # Rayleigh quotients
        index = order[:, None, :].expand_as(basis)
        old = basis.gather(2, index)
        new = torch.linalg.qr(image.gather(2, index))[0]
        # QR fixes columns up to sign; keep the old ones' so that the moments keep their meaning
        # (never by 0: where the gradient is nothing, QR may swap columns, and a column lost would stay lost)
        new *= torch.where((new * old).sum(1, keepdim=True) < 0, -1.0, 1.0)
        rows = order[:, :, None] if axis == 1 else order[:, None, :]
        square.copy_(square.gather(axis, rows.expand_as(square)))
        turn = new.mT @ basis
        mean.copy_(turn @ mean if axis == 1 else mean @ turn.mT)
        basis.copy_(new)


OPTIMISERS = {"adam": Adam, "soap": Soap}


def constant(lr: float, updates: int) -> Callable[[int], float]:
    """The papers' schedule for the toys."""
    return lambda i: lr


def one_cycle(lr: float, updates: int) -> Callable[[int], float]:
    """Up to ``lr`` in the first fifth, then down to a thousandth of it along cosines (Smith and Topin, 2018).

    Example:
        >>> rate = one_cycle(3e-3, 1000)
        >>> rate(200), rate(999) < 1e-5
        (0.003, True)
    """

    def rate(i: int) -> float:
        up = updates / 5
        if i < up:
            return lr * (0.04 + 0.96 * (1 - math.cos(math.pi * i / up)) / 2)
        return lr * (0.001 + 0.999 * (1 + math.cos(math.pi * (i - up) / (updates - up))) / 2)

    return rate


SCHEDULES = {"constant": constant, "one_cycle": one_cycle}
