r"""Explicit Runge-Kutta solvers of dx/dt = v(x, t), da/dt = w(x, t), on a given grid or with adaptive steps.

The state is a pair (x, a) of points and a scalar for each point, such as an integrated divergence: a likelihood is one
solution with the pair (velocity, divergence). Each method is defined by its Butcher tableau. Here t is whatever is
stepped in; :mod:`psmlib.sampling.variables` puts an equation in t in terms of log SNR.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor, float], tuple[Tensor, Tensor | float]]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method: nodes c, coefficients a (row by row) and weights b."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


TABLEAUS = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

# Dormand and Prince (1980): order 5 with an embedded method of order 4
DOPRI5 = Tableau(
    5, (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    ((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
     (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
     (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
     (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
)  # fmt: skip
_DOPRI5_B4 = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
_DOPRI5_ERROR = tuple(b - b4 for b, b4 in zip(DOPRI5.b, _DOPRI5_B4, strict=True))

METHODS = (*TABLEAUS, "adaptive")


def stages(field: Field, table: Tableau, x: Tensor, t: float, h: float, first=None) -> tuple[list[Tensor], list]:
    """The stages of one step: slopes of x and of a; ``first`` is the first pair of slopes, if known."""
    ks, ls = ([], []) if first is None else ([first[0]], [first[1]])
    for c, row in list(zip(table.c, table.a, strict=True))[len(ks) :]:
        y = x
        for weight, k in zip(row, ks, strict=True):
            if weight:
                y = y + (h * weight) * k
        k, slope = field(y, t + c * h)
        ks.append(k)
        ls.append(slope)
    return ks, ls


def _combine(weights, slopes):
    return sum(w * s for w, s in zip(weights, slopes, strict=True) if w)


def fixed(fields: Callable[[float], Field], x: Tensor, times, method: str) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Solves along ``times``, ascending or descending, yielding (x, a, t) after each step.

    Args:
        fields: Maps the middle of a step to the field used in the whole step, that of one network of a bank.
        x: Initial points. Shape: (n, *shape).
        times: Time grid. Shape: (steps + 1,).
        method: "euler", "heun" or "rk4".

    Raises:
        ValueError: for an unknown method.
    """
    if method not in TABLEAUS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    table, times = TABLEAUS[method], [float(t) for t in times]
    a: Tensor | float = 0.0
    for t, s in zip(times, times[1:], strict=False):
        ks, ls = stages(fields((t + s) / 2), table, x, t, s - t)
        x = x + (s - t) * _combine(table.b, ks)
        a = a + (s - t) * _combine(table.b, ls)
        yield x, a, s


def adaptive(
    fields: Callable[[float], Field], x: Tensor, times, *, rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 20000,
    variable: str = "t",
) -> Iterator[tuple[Tensor, Tensor, float, int]]:  # fmt: skip
    """Dormand-Prince steps with error control between consecutive ``times``, yielding (x, a, t, nfe) at each of them.

    The error norm is the root mean square over all points and axes of x and over a, as in scipy and torchdiffeq. A step
    costs six evaluations, because its first slope is the last one of the step before.

    Raises:
        RuntimeError: when ``max_nfe`` evaluations do not suffice, naming the value of ``variable`` that was reached.
        FloatingPointError: when the field is not finite at a point that was reached: no shorter step helps there.
    """
    times, nfe = [float(t) for t in times], 0
    a: Tensor | float = 0.0
    h = (times[1] - times[0]) / 100
    for start, end in zip(times, times[1:], strict=False):
        t, sign = start, 1.0 if end > start else -1.0
        field, first = fields((start + end) / 2), None
        while sign * (end - t) > 1e-14 * abs(end - start):
            h = sign * min(abs(h), abs(end - t))
            if nfe + 7 > max_nfe:
                mend = f"loosen rtol and atol, raise max_nfe ({max_nfe}), or use a fixed grid"
                raise RuntimeError(f"the adaptive solver stopped at {variable} = {t:g} after {nfe} evaluations: {mend}")
            ks, ls = stages(field, DOPRI5, x, t, h, first)
            nfe += 7 if first is None else 6
            ends = [(u, u + h * _combine(DOPRI5.b, s), h * _combine(_DOPRI5_ERROR, s)) for u, s in ((x, ks), (a, ls))]
            ratio = _error_norm(ends, rtol, atol)
            first = (ks[0], ls[0])
            if ratio <= 1:
                x, a, t, first = ends[0][1], ends[1][1], t + h, (ks[-1], ls[-1])
            if not ratio < float("inf"):
                _check_slopes(x, first, f"{variable} = {t:g}")
                ratio = 1e5  # the step overflowed: try a much shorter one
            h *= min(5.0, max(0.1, 0.9 * (ratio + 1e-10) ** -0.2))
        yield x, a, end, nfe


def _check_slopes(x: Tensor, first: tuple, where: str) -> None:
    """Refuses a field that is not finite where a step begins, naming the point."""
    for slope in (value for value in first if isinstance(value, Tensor)):
        wrong = ~slope.flatten(1).isfinite().all(1) if slope.dim() > 1 else ~slope.isfinite()
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise FloatingPointError(
                f"the field is not finite at point {at} of {len(x)}, at {where}: drop the point, or look at the score"
            )


def _error_norm(ends, rtol: float, atol: float) -> float:
    """Root mean square of the errors, in units of their tolerances, of the tensors among (old, new, error)."""
    tensors = [(torch.as_tensor(old).abs(), new.abs(), error) for old, new, error in ends if isinstance(new, Tensor)]
    scaled = [(error / (atol + rtol * torch.maximum(old, new))).flatten() for old, new, error in tensors]
    return float(torch.cat(scaled).square().mean().sqrt())
