r"""One step of the online softmax: weights of a block of distances, and the factor that rescales the running sums.

With the least distance :math:`\ell` so far, sum :math:`Z = \sum_i 2^{-r(D_i - \ell)}` and energy
:math:`\sum_i 2^{-r(D_i-\ell)}(D_i - \ell)`, a new block may lower :math:`\ell`; then everything summed before shrinks
by :math:`2^{-r(\ell_{old} - \ell_{new})}` (Milakov & Gimelshein, 2018). Base 2, because on a CPU ``torch.exp`` takes
three times as long as ``torch.exp2``, and ten or thirty times where it underflows: nearly everywhere at little noise.
The reference makes several passes over the block; the Triton kernel gives each row to a program, which reads it twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.kernels.dispatch import choose, jit, tl, triton

COLUMNS = 1024
"""Of a row that the Triton kernel reads at a time."""
Step = tuple[Tensor, Tensor]
"""The factor of older sums, (b,), and the column of the new least distance, (b,), or -1 where an older one is less."""


def softmax_step_ref(D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor) -> Step:
    """The step in torch operations; changes ``D``, ``low``, ``total`` and ``energy`` in place.

    Args:
        D: Squared distances; becomes the weights relative to the least distance. Shape: (b, n).
        low: Least distance so far, at first the largest number there is. Shape: (b,).
        total: Sum of weights so far. Shape: (b,).
        energy: Sum of weight times distance above the least so far, or None. Shape: (b,).
        rate: Weights halve where a distance grows by its inverse. Shape: (b,).

    Example:
        >>> D, low, total = torch.tensor([[3., 1., 2.]]), torch.tensor([2.]), torch.tensor([1.])
        >>> scale, best = softmax_step_ref(D, low, total, None, torch.ones(1))
        >>> D.tolist(), total.tolist(), scale.tolist(), best.tolist()
        ([[0.25, 1.0, 0.5]], [2.25], [0.5], [1])
    """
    least = torch.minimum(low, D.amin(1))
    best = torch.full(low.shape, -1, device=low.device)
    fallen = (least < low).nonzero()[:, 0]
    best[fallen] = D[fallen].argmin(1)  # of the few rows only: it costs as much as all the rest
    drop = low - least
    scale = (drop * -rate).exp2_()
    D.sub_(least[:, None])
    if energy is None:
        D.mul_(-rate[:, None]).exp2_()
    else:
        weight = (D * -rate[:, None]).exp2_()
        energy.addcmul_(total, drop).mul_(scale).add_(D.mul_(weight).sum(1))
        D.copy_(weight)
    total.mul_(scale).add_(D.sum(1))
    low.copy_(least)
    return scale, best


def softmax_step(D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor) -> Step:
    """The step, arguments as of :func:`softmax_step_ref`: by the Triton kernel on CUDA in float32, else by torch."""
    what, fits = f"online softmax in {D.dtype}", D.dtype == torch.float32
    step = choose(what, D.device.type, softmax_step_ref, softmax_step_triton, fits)
    return step(D, low, total, energy, rate)


def softmax_step_triton(D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor) -> Step:
    """As :func:`softmax_step_ref`; float32 only.

    Raises:
        ImportError: when Triton is not installed.
        ValueError: for another dtype, or rows that are not contiguous.
    """
    if triton is None:
        raise ImportError("the Triton softmax step needs triton: install it, or use softmax_step_ref")
    if D.dtype != torch.float32 or D.stride(1) != 1:
        raise ValueError("the Triton softmax step takes float32 with contiguous rows: use softmax_step_ref")
    scale, best = torch.empty_like(low), torch.empty(low.shape, dtype=torch.int64, device=low.device)
    if D.numel():
        _kernel[(len(D),)](
            D, D.stride(0), D.shape[1], low, total, total if energy is None else energy, rate.contiguous(), scale, best,
            ENERGY=energy is not None, COLUMNS=COLUMNS,
        )  # fmt: skip
    return scale, best


@jit
def _kernel(D, stride, n, low, total, energy, rate, scale, best, ENERGY: tl.constexpr, COLUMNS: tl.constexpr):
    """A program: one row. The first pass finds the least distance, the second computes the weights."""
    row = tl.program_id(0).to(tl.int64)
    D += row * stride
    cols = tl.arange(0, COLUMNS)
    old = tl.load(low + row)
    r = tl.load(rate + row)

    least = tl.full([COLUMNS], float("inf"), tl.float32)
    place = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, n, COLUMNS):
        value = tl.load(D + start + cols, mask=start + cols < n, other=float("inf"))
        place = tl.where(value < least, start + cols, place)
        least = tl.minimum(least, value)
    found = tl.min(least, 0)
    column = tl.min(tl.where(least == found, place, n), 0)
    new = tl.minimum(old, found)

    weights = tl.zeros([COLUMNS], tl.float32)
    works = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, n, COLUMNS):
        inside = start + cols < n
        gap = tl.where(inside, tl.load(D + start + cols, mask=inside, other=0.0) - new, 0.0)
        weight = tl.where(inside, tl.exp2(-r * gap), 0.0)
        tl.store(D + start + cols, weight, mask=inside)
        weights += weight
        if ENERGY:
            works += weight * gap

    drop = old - new
    shrink = tl.exp2(-r * drop)
    before = tl.load(total + row)
    if ENERGY:
        worked = (tl.load(energy + row) + before * drop) * shrink
        tl.store(energy + row, worked + tl.sum(works, 0))
    tl.store(total + row, before * shrink + tl.sum(weights, 0))
    tl.store(low + row, new)
    tl.store(scale + row, shrink)
    tl.store(best + row, tl.where(found < old, column.to(tl.int64), -1))
