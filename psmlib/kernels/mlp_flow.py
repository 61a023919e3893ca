r"""A whole probability-flow solve of small networks in the plane: field and exact divergence, all steps, one launch.

*Kernel profile.* Points do not meet, so a program takes its points from the first step to the last and reads nothing
but weights, 120 KB an evaluation, which the second-level cache holds. Velocity and divergence are

.. math:: v = a(t)\,x + c(t)\,\mathrm{net}(x, t),\qquad \nabla\cdot v = 2a + c\,\mathrm{tr} J .

The trace of :math:`J = W_4^\top S_3 W_3^\top S_2 W_2^\top S_1 W_1^\top`, S being ELU's slopes, meets in the middle:
with :math:`u_j = S_1 W_1^\top e_j` pushed through W_2 and :math:`r_j = S_3 W_4 e_j` pulled back through W_3, it is
:math:`\sum_j (W_2^\top u_j)\cdot S_2(W_3 r_j)`. That is twice the products of the field itself; the directions go into
the weights, so that of a point only its slopes are needed. 30,000 points and 4,000 evaluations are 22 Tflop, and read
and write 24 bytes a point.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP
from psmlib.solvers import TABLEAUS

COLUMNS = 10
"""Of the table of steps: h, and (network time, a, c) at the step's start, middle and end."""


def mlp_flow_ref(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """The solve in torch operations; arguments as of :func:`mlp_flow`, in any dtype."""
    tableau, times = TABLEAUS[method], widths[0] - 2
    basis = torch.eye(2, widths[0], dtype=x.dtype, device=x.device)[None]
    work, change = BankMLP(widths, x.new_empty(1, len(x), widths[0])), x.new_zeros(len(x))
    for block, row in zip(blocks.tolist(), table.tolist(), strict=True):
        h, flat, slopes, rates = row[0], params[block : block + 1], [], []
        for c, weights in zip(tableau.c, tableau.a, strict=True):
            y = x
            for weight, slope in zip(weights, slopes, strict=True):
                if weight:
                    y = y + (h * weight) * slope
            s, a, b = row[1 + 3 * round(2 * c) : 4 + 3 * round(2 * c)]
            value, trace = work.trace(flat, torch.cat([y, y.new_full((len(y), times), s)], 1)[None], basis)
            slopes.append(a * y + b * value[0])
            rates.append(2 * a + b * trace[0])
        x = x + h * sum(w * slope for w, slope in zip(tableau.b, slopes, strict=True))
        change = change + h * sum(w * rate for w, rate in zip(tableau.b, rates, strict=True))
    return x, change


def fits(widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the kernel can carry such networks: in the plane, three hidden layers, single precision.

    Example:
        >>> fits([4, 100, 150, 100, 2], torch.float32), fits([64, 100, 150, 100, 64], torch.float32)
        (True, False)
    """
    plane = len(widths) == 5 and widths[4] == 2 and 2 <= widths[0] <= 4
    return plane and max(widths[1], widths[3]) <= 256 and dtype == torch.float32


@cache
def _choose(device: str, fitting: bool):
    """The solve for a device, said once."""
    chosen, said = mlp_flow_ref, "torch operations"
    if device == "cuda" and fitting:
        from psmlib.kernels import mlp_flow_triton as module  # here, so that nobody else waits for Triton

        if module.triton is None:
            said = "torch operations, because Triton is not installed"
        else:
            chosen, said = module.mlp_flow_triton, "a Triton kernel"
    logging.getLogger("psmlib").info("probability flow of small networks on %s: %s", device, said)
    return chosen


def mlp_flow(
    params: Tensor, widths: Sequence[int], x: Tensor, blocks: Tensor, table: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """Carries points through the steps of a solver, by the best means that the device has.

    Args:
        params: Networks whose inputs are a point of the plane and then the time, as often as it fits. Shape: (K, P).
        widths: Layer widths, input first.
        x: Points. Shape: (n, 2).
        blocks: Which network answers in each step, int32. Shape: (steps,).
        table: Steps, in the order of :data:`COLUMNS`. Shape: (steps, 10).
        method: "euler" or "rk4".

    Returns:
        Where the points end, (n, 2), and the divergence integrated on the way, (n,).

    Raises:
        ValueError: for another method, or points outside the plane.

    Example:
        >>> from psmlib.kernels.bank_mlp import parameter_count
        >>> widths = [4, 8, 8, 8, 2]
        >>> still, x = torch.zeros(1, parameter_count(widths)), torch.ones(3, 2)
        >>> table = torch.tensor([[.1] + 3 * [0., 1., 1.]]).repeat(10, 1)   # no network: dx/dt = x from 0 to 1
        >>> end, change = mlp_flow(still, widths, x, torch.zeros(10, dtype=torch.int32), table, "rk4")
        >>> [round(float(v), 4) for v in (end[0, 0], change[0])]            # e, and 2
        [2.7183, 2.0]
    """
    if method not in ("euler", "rk4"):
        raise ValueError(f"the flow of small networks has steps of euler and rk4, not {method!r}")
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(f"points must be of shape (n, 2), got {tuple(x.shape)}")
    return _choose(x.device.type, fits(widths, x.dtype))(params, widths, x, blocks, table, method)
