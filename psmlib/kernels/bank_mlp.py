r"""Forward, gradient and Jacobian of a bank of ELU networks, without automatic differentiation.

For each network :math:`z_{l} = h_{l} W_l + b_l`, :math:`h_{l+1} = \mathrm{elu}(z_l)`, last layer linear. One flat
vector holds a network's parameters, so that Adam is a few passes over it. The K networks run as batched matrix
products; on a CPU the caller passes one network at a time, which keeps its activations in the cache.

ELU is computed as max(z, 0) + e - 1 with e = exp(min(z, 0)); e is also its derivative. That is several times
faster than ``torch.nn.functional.elu``, which calls expm1, and the backward pass need not compute the derivative again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def parameter_count(widths: Sequence[int]) -> int:
    """Number of parameters of one network.

    Example:
        >>> parameter_count([4, 100, 150, 100, 2])      # the network of Parallel Score Matching, Appendix H
        30952
    """
    return sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))


def layers(flat: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Views of a flat parameter vector as (weight, bias) pairs. Shapes: (K, P) -> (K, a, b), (K, 1, b)."""
    out, at, lead = [], 0, flat.shape[:-1]
    for a, b in zip(widths, widths[1:], strict=False):
        weight = flat[..., at : at + a * b].view(*lead, a, b)
        bias = flat[..., at + a * b : at + a * b + b].view(*lead, 1, b)
        out.append((weight, bias))
        at += a * b + b
    return out


def bank_mlp_ref(flat: Tensor, widths: Sequence[int], h: Tensor) -> Tensor:
    """The networks in plain differentiable torch. Shapes: (K, P), (K, B, F) -> (K, B, out)."""
    stack = layers(flat, widths)
    for i, (weight, bias) in enumerate(stack):
        h = h @ weight + bias
        if i < len(stack) - 1:
            h = F.elu(h)
    return h


class BankMLP:
    """Forward and backward passes with buffers for one batch shape, to be reused from step to step.

    Args:
        widths: Layer widths, input first.
        like: A tensor of shape (K, B, F) whose shape, dtype and device the buffers take.

    Raises:
        ValueError: when the last axis of ``like`` is not the first width.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> widths, h = [4, 8, 2], torch.randn(3, 16, 4, dtype=torch.float64, generator=g)
        >>> flat = torch.randn(3, parameter_count(widths), dtype=torch.float64, generator=g)
        >>> torch.allclose(BankMLP(widths, h).forward(flat, h), bank_mlp_ref(flat, widths, h))
        True
    """

    operand = staticmethod(lambda x: x)
    """What becomes of a training step's matrices before they are multiplied: nothing, but a subclass may round them."""

    def __init__(self, widths: Sequence[int], like: Tensor):
        self.widths, self.shape = tuple(widths), tuple(like.shape)
        if len(self.shape) != 3 or self.shape[-1] != self.widths[0]:
            raise ValueError(f"the networks take inputs of shape (K, B, {self.widths[0]}), got {self.shape}")
        self._act = [like.new_empty(*self.shape[:-1], w) for w in self.widths[1:]]
        self._slope = [torch.empty_like(a) for a in self._act[:-1]]
        self._delta: list[Tensor] = []
        self._spare: dict[str, Tensor] = {}
        self._views: dict[int, tuple[Tensor, list]] = {}

    def _layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cached views: creating them costs as much as a small matrix product."""
        held = self._views.get(id(flat))
        if held is None or held[0] is not flat:
            if len(self._views) > 8:
                self._views.clear()
            held = self._views[id(flat)] = (flat, layers(flat, self.widths))
        return held[1]

    def forward(self, flat: Tensor, h: Tensor) -> Tensor:
        """Network outputs, (K, B, out); the tensor is a buffer that the next call overwrites."""
        stack = self._layers(flat)
        for i, (weight, bias) in enumerate(stack):
            h = torch.baddbmm(bias, self.operand(h), self.operand(weight), out=self._act[i])
            if i < len(stack) - 1:
                e = torch.clamp(h, max=0, out=self._slope[i]).exp_()
                h.clamp_(min=0).add_(e).sub_(1)
        return h

    def gradient(self, flat: Tensor, h: Tensor, target: Tensor, grad: Tensor, weight: Tensor | None = None) -> Tensor:
        """Writes the gradient of the mean squared error into ``grad`` and returns the error of each network.

        Args:
            flat: Parameters. Shape: (K, P).
            h: Inputs. Shape: (K, B, F).
            target: Shape: (K, B, out).
            grad: Output buffer. Shape: (K, P).
            weight: Of each row's squared error; 1 by default. Shape: (K, B).

        Returns:
            Mean (weighted) squared errors over batch and axes. Shape: (K,).
        """
        if not self._delta:
            self._delta = [torch.empty_like(a) for a in self._act]
        inputs = [h, *self._act[:-1]]
        delta = torch.sub(self.forward(flat, h), target, out=self._delta[-1])
        if weight is None:
            loss = delta.square().mean((1, 2))
        else:
            loss = (delta.square().mean(2) * weight).mean(1)
            delta.mul_(weight[..., None])
        delta.mul_(2 / (target.shape[1] * target.shape[2]))
        stack, grads = self._layers(flat), self._layers(grad)
        for i in range(len(stack) - 1, -1, -1):
            operand = self.operand(delta)
            torch.bmm(self.operand(inputs[i]).mT, operand, out=grads[i][0])
            torch.sum(delta, 1, keepdim=True, out=grads[i][1])
            if i:
                delta = torch.bmm(operand, self.operand(stack[i][0]).mT, out=self._delta[i - 1])
                delta.mul_(self._slope[i - 1])
        return loss

    def jacobian(self, flat: Tensor, h: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and their derivatives along several input directions, in one forward pass.

        Values and tangents are rows of one matrix product. Make the object with ``like`` of shape (K, (1 + m) B, F).

        Args:
            flat: Parameters. Shape: (K, P).
            h: Inputs. Shape: (K, B, F).
            tangents: Directions. Shape: (K, m, B, F).

        Returns:
            Outputs (K, B, out) and derivatives (K, m, B, out); both are buffers.
        """
        m, B = tangents.shape[1:3]
        z = torch.cat([h, tangents.flatten(1, 2)], 1)
        stack = self._layers(flat)
        for i, (weight, bias) in enumerate(stack):
            z = torch.bmm(z, weight, out=self._act[i])
            value = z[:, :B].add_(bias)
            if i < len(stack) - 1:
                e = torch.clamp(value, max=0, out=self._slope[i][:, :B]).exp_()
                value.clamp_(min=0).add_(e).sub_(1)
                z[:, B:].unflatten(1, (m, B)).mul_(e[:, None])
        return z[:, :B], z[:, B:].unflatten(1, (m, B))

    def trace(self, flat: Tensor, h: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        r"""Outputs, and the sum over j of the derivative of output j along direction j, common to all points.

        The chain of Jacobians is contracted from both ends: directions are pushed forward to the last but one
        hidden layer, outputs are pulled back to it through the last. Directions and outputs are multiplied into the
        weights, so that a product takes one row of slopes per point instead of m rows of tangents.

        Args:
            flat: Parameters. Shape: (K, P).
            h: Inputs. Shape: (K, B, F).
            tangents: Directions, m = out of them. Shape: (K, m, F).

        Returns:
            Outputs (K, B, out), a buffer, and traces (K, B).
        """
        value, weights = self.forward(flat, h), [weight for weight, _ in self._layers(flat)]
        moved, m, last = (tangents @ weights[0])[:, None], tangents.shape[1], len(weights) - 2  # last hidden layer
        for i in range(last - 1):  # moved: derivatives of the pre-activations of layer i, (K, B or 1, m, width)
            if i == 0:  # diag(direction) W for each direction, side by side
                wide = moved[:, 0].mT[..., None] * weights[1][:, :, None]
                moved = self._wide("moved", self._slope[0], wide.flatten(2)).unflatten(2, (m, -1))
            else:
                moved = (moved * self._slope[i][:, :, None]).flatten(1, 2)
                moved = torch.bmm(moved, weights[i + 1]).unflatten(1, (-1, m))
        if last < 1:  # with one hidden layer, or none, there is nothing to pull back through
            pairs = (moved * weights[-1].mT[:, None]).sum(2) if last == 0 else moved.diagonal(dim1=2, dim2=3)
            return value, (pairs * self._slope[0] if last == 0 else pairs).sum(-1).expand(value.shape[:2])
        pulled = weights[-1][..., None] * weights[last].mT[:, :, None]
        back = self._wide("back", self._slope[last], pulled.flatten(2)).unflatten(2, (m, -1)).mul_(moved)
        total = back[:, :, 0]
        for j in range(1, m):
            total.add_(back[:, :, j])
        return value, total.mul_(self._slope[last - 1]).sum(-1)

    def _wide(self, name: str, rows: Tensor, matrix: Tensor) -> Tensor:
        """A product into a buffer kept under ``name``: new memory would cost as much as the product."""
        shape = (*rows.shape[:2], matrix.shape[2])
        if name not in self._spare or self._spare[name].shape != shape:
            self._spare[name] = rows.new_empty(shape)
        return torch.bmm(rows, matrix, out=self._spare[name])
