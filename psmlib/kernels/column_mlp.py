r"""Forward, gradient, Jacobian and trace of one ELU network on a core: its points are the columns of a matrix.

What :class:`psmlib.kernels.bank_mlp.BankMLP` computes, laid out for one core. There a layer of the book's network takes
0.2 ms, and each pass over its activations 5 to 10 % of that:

* :math:`Z = [W; b]^\top [H; 1]`: a flat vector of parameters holds each layer as the matrix :math:`[W; b]`, and under
  the activations lies a row of ones, so that biases cost no pass, forward or back. Features are rows, hence contiguous.
* Units of log 2: with :math:`\lambda = 1/\log 2`, inputs, targets and the row of ones are multiplied by
  :math:`\lambda`, and then so are all pre-activations and activations, :math:`\tilde z = \lambda z`. The exponential is
  :math:`e = 2^{\min(\tilde z, 0)}`, 1.7 times as fast as that to base e, :math:`\lambda\,\mathrm{elu}(z) =
  \max(\tilde z, \lambda e - \lambda)`, and e is the slope in these units too.
* Products by numpy or torch, whichever is faster here: :mod:`psmlib.kernels.products`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP
from psmlib.kernels.products import product

UNIT = 1 / math.log(2)


class ColumnMLP:
    """Passes of one network, with buffers for one batch shape, to be reused from step to step.

    Arguments and methods as of :class:`psmlib.kernels.bank_mlp.BankMLP`, with K = 1.

    Args:
        widths: Layer widths, input first.
        like: A tensor of shape (1, B, F) whose shape and dtype the buffers take.

    Raises:
        ValueError: when ``like`` is not of that shape.

    Example:
        >>> from psmlib.kernels.bank_mlp import bank_mlp_ref, parameter_count
        >>> g = torch.Generator().manual_seed(0)
        >>> widths, h = [4, 8, 2], torch.randn(1, 16, 4, dtype=torch.float64, generator=g)
        >>> flat = torch.randn(1, parameter_count(widths), dtype=torch.float64, generator=g)
        >>> torch.allclose(ColumnMLP(widths, h).forward(flat, h), bank_mlp_ref(flat, widths, h))
        True
    """

    def __init__(self, widths: Sequence[int], like: Tensor):
        self.widths, shape = tuple(widths), tuple(like.shape)
        if len(shape) != 3 or shape[0] != 1 or shape[-1] != self.widths[0]:
            raise ValueError(f"the network takes inputs of shape (1, B, {self.widths[0]}), got {shape}")
        self._see, self._multiply = product()
        self._floor, self._shifted = like.new_tensor(-UNIT), like.new_empty(max(self.widths), shape[1])
        self._act = [like.new_empty(w + 1, shape[1]) for w in self.widths[:-1]]
        for act in self._act:
            act[-1] = UNIT
        self._out = [act[:-1] for act in self._act[1:]] + [like.new_empty(self.widths[-1], shape[1])]
        self._slope = [torch.empty_like(out) for out in self._out[:-1]]
        pairs = zip(self._act, self._out, strict=True)
        self._factors = [tuple(self._see(view) for view in (act, out, out.mT)) for act, out in pairs]
        self._spare: dict[int, Tensor] = {}
        self._views: dict[int, tuple[Tensor, list]] = {}

    def _layers(self, flat: Tensor) -> list[tuple]:
        """Cached factors of products: weights and biases (b, a + 1), weights (a, b) and biases (b,); and weights."""
        held = self._views.get(id(flat))
        if held is None or held[0] is not flat:
            if len(self._views) > 8:
                self._views.clear()
            views, at = [], 0
            for a, b in zip(self.widths, self.widths[1:], strict=False):
                whole = flat[0, at : at + (a + 1) * b].unflatten(0, (a + 1, b))
                views.append((*(self._see(view) for view in (whole.mT, whole[:-1], whole[-1])), whole[:-1]))
                at += (a + 1) * b
            held = self._views[id(flat)] = (flat, views)
        return held[1]

    def _outputs(self, flat: Tensor, h: Tensor, tangents: Tensor | None = None) -> Tensor:
        """Outputs in units of log 2, and derivatives along tangents. Shape: (out, (1 + m) B)."""
        values, first = h.shape[1], self._act[0][:-1]
        torch.mul(h[0].mT, UNIT, out=first[:, :values])
        if tangents is not None:
            first[:, values:].unflatten(1, tangents.shape[1:3]).copy_(tangents[0].permute(2, 0, 1))
            for act in self._act:
                act[-1, values:] = 0  # derivatives have no bias
        for i, ((whole, *_), (act, out, _)) in enumerate(zip(self._layers(flat), self._factors, strict=True)):
            self._multiply(whole, act, out=out)
            if i < len(self._slope):
                z, e = self._out[i][:, :values], self._slope[i][:, :values]
                torch.clamp(z, max=0, out=e).exp2_()
                shifted = torch.add(self._floor, e, alpha=UNIT, out=self._shifted[: len(z), :values])
                torch.maximum(z, shifted, out=z)
                if tangents is not None:
                    self._out[i][:, values:].unflatten(1, tangents.shape[1:3]).mul_(e[:, None])
        return self._out[-1]

    def forward(self, flat: Tensor, h: Tensor) -> Tensor:
        """Network outputs, (1, B, out)."""
        return torch.div(self._outputs(flat, h).mT, UNIT)[None]

    def gradient(self, flat: Tensor, h: Tensor, target: Tensor, grad: Tensor, weight: Tensor | None = None) -> Tensor:
        """Writes the gradient of the mean squared error into ``grad``, (1, P), and returns the error, (1,)."""
        delta, size = self._outputs(flat, h), target[0].numel() * UNIT**2
        delta.sub_(target[0].mT, alpha=UNIT)
        if weight is None:
            loss = torch.dot(delta.view(-1), delta.view(-1))
        else:
            loss = (delta.square().sum(0) * weight[0]).sum()
            delta.mul_(weight)
        delta.mul_(2 / size)  # and so the products below, with inputs in units of log 2, are plain gradients
        stack, grads = self._layers(flat), self._layers(grad)
        for i in range(len(stack) - 1, -1, -1):
            act, columns, rows = self._factors[i]
            # not one product with the row of ones: a row too many for the processor's registers costs more
            self._multiply(act[:-1], rows, out=grads[i][1])
            self._multiply(columns, act[-1], out=grads[i][2])
            if i:  # deltas take the place of activations, which have served: less memory, more of it in the cache
                self._multiply(stack[i][1], columns, out=self._factors[i - 1][1])
                self._out[i - 1].mul_(self._slope[i - 1])
        return loss.div_(size)[None]

    def jacobian(self, flat: Tensor, h: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (1, B, out) and derivatives along tangents (1, m, B, F), which are of shape (1, m, B, out)."""
        both = self._outputs(flat, h, tangents)
        value, slopes = both[:, : h.shape[1]], both[:, h.shape[1] :].unflatten(1, tangents.shape[1:3])
        return (value.mT / UNIT)[None], slopes.permute(1, 2, 0)[None]

    def trace(self, flat: Tensor, h: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (1, B, out), and traces (1, B) along directions common to all points, (1, m, F)."""
        value, m = self.forward(flat, h), tangents.shape[1]
        weights = [weight for *_, weight in self._layers(flat)]
        moved, last = (tangents[0] @ weights[0]).mT, len(weights) - 2  # of pre-activations: (width, m)
        if last < 1:  # with one hidden layer, or none, there is nothing to pull back through
            pairs = (moved * weights[-1]).sum(1) if last == 0 else moved.diagonal()
            return value, (pairs @ self._slope[0] if last == 0 else pairs.sum().expand(h.shape[1]))[None]
        moved = moved.mT[..., None]  # (m, width, 1), and from the next layer on (m, width, B)
        for i in range(last - 1):
            if i == 0:  # W^T diag(direction) for each direction, one above the other
                wide = (weights[1].mT * moved.mT).flatten(0, 1)
                moved = self._wide(0, wide, self._slope[0]).unflatten(0, (m, -1))
            else:
                moved = torch.matmul(weights[i + 1].mT, moved * self._slope[i])
        pulled = (weights[last] * weights[-1].mT[:, None]).flatten(0, 1)
        back = self._wide(1, pulled, self._slope[last]).unflatten(0, (m, -1)).mul_(moved)
        total = back[0]
        for each in back[1:]:
            total.add_(each)
        return value, total.mul_(self._slope[last - 1]).sum(0)[None]

    def _wide(self, name: int, matrix: Tensor, columns: Tensor) -> Tensor:
        """A product into a buffer kept under a number: new memory would cost as much as the product."""
        if name not in self._spare:
            self._spare[name] = columns.new_empty(len(matrix), columns.shape[1])
        self._multiply(self._see(matrix), self._see(columns), out=self._see(self._spare[name]))
        return self._spare[name]


def network_for(widths: Sequence[int], like: Tensor) -> BankMLP | ColumnMLP:
    """The faster class for inputs like these; call it within :func:`~psmlib.kernels.products.one_thread`.

    Example:
        >>> type(network_for([4, 8, 2], torch.empty(1, 16, 4))).__name__
        'ColumnMLP'
    """
    serves = len(like) == 1 and like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
    return (ColumnMLP if serves else BankMLP)(widths, like)
