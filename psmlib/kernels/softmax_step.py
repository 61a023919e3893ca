r"""One step of the online softmax: weights of a block of distances, and what the running sums must be scaled by.

With the least distance :math:`\ell` so far, sum :math:`Z = \sum_i 2^{-r(D_i - \ell)}` and energy
:math:`\sum_i 2^{-r(D_i-\ell)}(D_i - \ell)`, a new block may lower :math:`\ell`; then everything summed before shrinks
by :math:`2^{-r(\ell_{old} - \ell_{new})}` (Milakov & Gimelshein, 2018). Base 2, because on a CPU ``torch.exp`` takes
three times as long as ``torch.exp2``, and ten or thirty times where it underflows: nearly everywhere at little noise.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor


def softmax_step_ref(
    D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """The step in torch operations; changes ``D``, ``low``, ``total`` and ``energy`` in place.

    Args:
        D: Squared distances; becomes the weights relative to the least distance. Shape: (b, n).
        low: Least distance so far, at first the largest number there is. Shape: (b,).
        total: Sum of weights so far. Shape: (b,).
        energy: Sum of weight times distance above the least so far, or None. Shape: (b,).
        rate: Weights halve where a distance grows by its inverse. Shape: (b,).

    Returns:
        What older sums are to be multiplied by, (b,), and the column of the new least distance, (b,), or -1 where
        the least distance is an older one.

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


@cache
def _choose(device: str, dtype: torch.dtype):
    """The step for a device, said once."""
    chosen, words = softmax_step_ref, "torch operations"
    if device == "cuda" and dtype == torch.float32:
        from psmlib.kernels import softmax_step_triton as module  # here, so that nobody else waits for Triton

        if module.triton is None:
            words = "torch operations, because Triton is not installed"
        else:
            chosen, words = module.softmax_step_triton, "a Triton kernel"
    logging.getLogger("psmlib").info("online softmax on %s in %s: %s", device, dtype, words)
    return chosen


def softmax_step(D: Tensor, low: Tensor, total: Tensor, energy: Tensor | None, rate: Tensor) -> tuple[Tensor, Tensor]:
    """The step by the best means that the device has: :func:`softmax_step_ref`, or a Triton kernel in float32."""
    return _choose(D.device.type, D.dtype)(D, low, total, energy, rate)
