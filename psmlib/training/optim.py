"""Optimisers over flat parameter vectors of a bank, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from psmlib.kernels.bank_updates import BETA1, BETA2, EPS, adam_rate, adam_step


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
        tensors = params, grad, self.state["mean"], self.state["square"]
        if params.device.type == "cpu" and has_one_pass():
            _one_pass(*tensors, lr, count)
        else:
            adam_step(*tensors, adam_rate(lr, count))


def _one_pass(params: Tensor, grad: Tensor, mean: Tensor, square: Tensor, lr: float, count: int) -> None:
    """The step by an operator that torch's own Adam has under ``fused=True``: one pass where ours are seven."""
    lists, how = ([tensor] for tensor in (params, grad, mean, square)), {"weight_decay": 0.0, "amsgrad": False}
    how |= {"lr": lr, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "maximize": False}
    torch._fused_adam_(*lists, [], [torch.tensor(float(count))], **how)


@cache
def has_one_pass() -> bool:
    """Whether this torch has that operator, which is private, as we know it: it is tried on a few numbers."""
    found, wanted = (list(torch.arange(1.0, 13.0).view(4, 1, 3).unbind()) for _ in range(2))
    adam_step(*wanted, adam_rate(0.1, 3))
    try:
        _one_pass(*found, 0.1, 3)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return all(torch.allclose(found[i], wanted[i], rtol=1e-5) for i in (0, 2, 3))


class Soap(Adam):
    r"""Adam in the eigenbasis of Shampoo's preconditioner (SOAP: Vyas et al., 2024, Algorithm 3), well conditioned.

    For a layer's gradient G (weight and bias as one matrix) keep :math:`L = E[GG^T]` and :math:`R = E[G^TG]`, with
    eigenvectors :math:`Q_L, Q_R`; run Adam on :math:`Q_L^T G Q_R` and turn its step back. The eigenvectors follow
    by one power iteration and a QR factorisation every few steps. First moments live in the turned basis.

    The paper's bases start as the eigenvectors of the first gradient, whose rank is far below the layer's size: most of
    them, and Adam's steps along them, are rounding, so that every processor takes a path of its own. Here they start as
    the layer's axes; the power iteration is damped, :math:`Q \leftarrow \mathrm{qr}((L + \delta\,\mathrm{tr}(L)\,I)Q)`,
    so that directions with next to no gradient stay where they are; and the second moments' root has a floor relative
    to its largest entry. A relative change of 6e-8 in the toys' initial parameters then moves their test NLL by 2e-5
    nats after 200 updates in place of 4e-3 (Adam's by less than 1e-6; seeds differ by 1e-2). After 1800 updates at
    learning rates up to 1e-2 it still moves by some 3e-3: such a run is chaotic, with Adam too (a change of 6e-8
    has grown to 2e-2 of the parameters).

    Example:
        >>> p = torch.ones(1, 3 * 2, dtype=torch.float64)          # one layer: 2 inputs and a bias, 2 outputs
        >>> soap, A = Soap(p, [2, 2]), torch.diag(torch.tensor([1., 10., 100., 1e3, 1e4, 1e5], dtype=torch.float64))
        >>> for i in range(300):
        ...     soap.step(p, p @ A, lr=.1 * (1 - i / 300), count=i + 1)
        >>> bool(p.abs().max() < 1e-2)
        True
    """

    beta1, beta2, eps, shampoo, every, refresh, damping, noise = 0.9, 0.99, 1e-8, 0.95, 4, 20, 1e-4, 1e-4

    def __init__(self, params: Tensor, widths: Sequence[int] = ()):
        super().__init__(params, widths)
        if len(self.widths) < 2:
            raise ValueError("SOAP works on layers: give it the widths of the network, as in Soap(params, [4, 8, 2])")
        for i, (a, b) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            for name, size in ((f"left{i}", a + 1), (f"right{i}", b)):
                # float64, for the damping must stand out from the rounding of the largest eigenvalue
                self.state[name] = params.new_zeros(len(params), size, size, dtype=torch.float64)
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
        QL, QR = self.state[f"left{i}_basis"], self.state[f"right{i}_basis"]
        if count == 1 or count % self.every == 0:
            share, G = 1.0 if count == 1 else 1 - self.shampoo, grad.double()
            left.lerp_(G @ G.mT, share)
            right.lerp_(G.mT @ G, share)
        if count == 1:
            self._follow(left, QL, mean, square, 1)
            self._follow(right, QR, mean, square, 2)
        turned = torch.bmm(torch.bmm(QL.mT, grad), QR)
        mean.lerp_(turned, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(turned, turned, value=1 - self.beta2)
        root = square.sqrt()
        # what is this far below the layer's largest may be the rounding of the turns: Adam would step along it in full
        root.add_(eps + self.noise * root.amax((1, 2), keepdim=True))
        step = torch.bmm(torch.bmm(QL, torch.div(mean, root, out=root)), QR.mT)
        if count % self.refresh == 0:
            self._follow(left, QL, mean, square, 1)
            self._follow(right, QR, mean, square, 2)
        return step

    def _follow(self, stat: Tensor, basis: Tensor, mean: Tensor, square: Tensor, axis: int) -> None:
        """Moves a basis towards the eigenvectors of ``stat``, and the moments with it."""
        before = basis.double()
        image, floor = stat @ before, self.damping * stat.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        # Rayleigh quotients; those below the floor are alike, and keep their order
        order = (before * image).sum(1).maximum(floor).argsort(dim=1, descending=True, stable=True)
        index = order[:, None, :].expand_as(before)
        old = before.gather(2, index)
        new = torch.linalg.qr(image.gather(2, index) + floor[:, :, None] * old)[0]
        # QR fixes columns up to sign; keep the old ones' so that the moments keep their meaning
        # (never by 0: where the gradient is nothing, QR may swap columns, and a column lost would stay lost)
        new *= torch.where((new * old).sum(1, keepdim=True) < 0, -1.0, 1.0)
        rows = order[:, :, None] if axis == 1 else order[:, None, :]
        square.copy_(square.gather(axis, rows.expand_as(square)))
        turn = (new.mT @ before).to(mean.dtype)
        mean.copy_(turn @ mean if axis == 1 else mean @ turn.mT)
        basis.copy_(new)


OPTIMISERS = {"adam": Adam, "soap": Soap}


def constant(lr: float, updates: int) -> Callable[[int], float]:
    """The papers' schedule for the toys."""
    return lambda i: lr


def one_cycle(lr: float, updates: int) -> Callable[[int], float]:
    """Up to ``lr`` in the first fifth, then down to a thousandth of it along cosines (Smith and Topin, 2018).

    Step for step torch's ``OneCycleLR`` with ``pct_start=0.2, div_factor=25, final_div_factor=40``: the first update
    has ``lr / 25``, that number ``updates / 5`` has ``lr``, and the last has ``lr / 1000``.

    Example:
        >>> rate = one_cycle(3e-3, 1000)
        >>> [round(rate(i), 9) for i in (0, 199, 999)]                # updates are counted from 0
        [0.00012, 0.003, 3e-06]
    """
    top, last = updates / 5 - 1, updates - 1

    def rate(i: int) -> float:
        if i < top:
            return lr * (0.04 + 0.96 * (1 - math.cos(math.pi * i / top)) / 2)
        return lr * (0.001 + 0.999 * (1 + math.cos(math.pi * (i - top) / (last - top))) / 2)

    return rate


SCHEDULES = {"constant": constant, "one_cycle": one_cycle}
