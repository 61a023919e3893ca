r"""The score equation: the partial differential equation that the score of a diffusion satisfies, and its residual.

The density of :math:`dx = f x\,dt + g\,dw` solves the Fokker-Planck equation. Dividing by the density and taking the
gradient in x gives an equation for the score :math:`s` alone:

.. math:: \partial_t s = -f\,\bigl(s + \partial_x s\,x\bigr)
          + \tfrac12 g^2\,\bigl(\nabla\operatorname{tr}\partial_x s + 2\,\partial_x s\,s\bigr).

With the velocity of the probability-flow ODE, :math:`v = f x - \tfrac12 g^2 s`, it is

.. math:: \partial_t s = -\nabla\operatorname{div} v - \partial_x s\,v - \partial_x v\,s .

Parallel Score Matching prints it without the last term (its Eqs. 2 and 17, for :math:`f = -b/2`, :math:`g^2 = b`),
which is :math:`\tfrac b2(s + \partial_x s\,s)`: its Appendix D exchanges the gradient in x with the derivative along
the flow, and the two do not commute, because the flow moves neighbouring points by different amounts.
"""

from typing import NamedTuple

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from psmlib.machine.checks import check_choice
from psmlib.process import Process, as_time, expand
from psmlib.score import Score

FORMS = ("paper", "corrected")


class Terms(NamedTuple):
    """The quantities in the score equation, at n points."""

    rate: Tensor  # time derivative of the score, (n, d)
    score: Tensor  # (n, d)
    jacobian: Tensor  # of the score, (n, d, d)
    trace_gradient: Tensor  # gradient of the Jacobian's trace, (n, d)


def terms(score: Score, x: Tensor, t: float | Tensor) -> Terms:
    """Evaluates the quantities that both forms of the equation need.

    Args:
        score: Exact or trained; give ``x`` in float64 even for a bank in float32.
        x: Points. Shape: (n, d).
        t: Times after 0. Shape: () or (n,).
    """
    value, jacobian = score.jacobian(x, t)
    return Terms(score.time_derivative(x, t), value, jacobian, score.trace_gradient(x, t))


def right_side(parts: Terms, process: Process, x: Tensor, t: float | Tensor, form: str = "corrected") -> Tensor:
    """The right side of the score equation, which equals the time derivative of the score. Shape: (n, d).

    Args:
        parts: From :func:`terms`.
        process: The process of the score.
        x: Points. Shape: (n, d).
        t: Times. Shape: () or (n,).
        form: "paper" for Parallel Score Matching's Eq. 17, "corrected" for Fokker-Planck's.

    Raises:
        ValueError: for another form, or where the drift is infinite (flow matching at 1).
    """
    check_choice("form", form, FORMS, of="the score equation")
    t = as_time(t, x)
    if not bool((process.alpha(t) > 0).all()):
        raise ValueError("the drift of this process is infinite where no signal is left: take earlier times")
    f, half = expand(process.drift(t), x), expand(0.5 * process.diffusion2(t), x)
    velocity = f * x - half * parts.score

    def along(u: Tensor) -> Tensor:
        return (parts.jacobian @ u[..., None])[..., 0]

    right = half * parts.trace_gradient - along(velocity)
    return right if form == "paper" else right - f * parts.score + half * along(parts.score)


def residual(score: Score, process: Process, x: Tensor, t: float | Tensor, form: str = "corrected") -> Tensor:
    """Residual of the score equation: time derivative minus right side; zero for the score of a diffusion.

    Args:
        score: Exact or trained.
        process: Its process.
        x: Points. Shape: (n, d).
        t: Times after 0. Shape: () or (n,).
        form: "paper" or "corrected".

    Returns:
        Shape: (n, d), per unit of time.

    Raises:
        ValueError: for another form, points that are not of shape (n, d), or a time at which the equation is singular.

    Example:
        >>> import torch
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> vp, x = VP(0., 10.), torch.tensor([[.3, .7]], dtype=torch.float64)
        >>> exact = HG().diffused(vp)
        >>> for form in FORMS:
        ...     print(form, bool(residual(exact, vp, x, .3, form).abs().max() < 1e-9))
        paper False
        corrected True
    """
    if x.dim() != 2:
        raise ValueError(f"x must have shape (n, d), got {tuple(x.shape)}: flatten it")
    if not bool((process.sigma(as_time(t, x)) > 0).all()):
        raise ValueError("the score has no time derivative at t = 0, where there is no noise: take later times")
    parts = terms(score, x, t)
    return parts.rate - right_side(parts, process, x, t, form)


def per_log_snr(value: Tensor, process: Process, t: float | Tensor) -> Tensor:
    r"""Rate of the expected noise per unit of log SNR, :math:`\sigma r/|\dot\lambda|`, from a rate r of the score.

    The score grows without bound as t goes to 0, and processes differ in speed. In this unit values are comparable
    between times and processes, and the likelihood gap is an integral of the squared error.

    Args:
        value: A rate of the score r, such as a residual. Shape: (n, d).
        process: Its process.
        t: Times. Shape: () or (n,).
    """
    t = as_time(t, value)
    sigma, alpha = process.sigma(t), process.alpha(t)
    rate = 2 * (process.sigma_rate(t) / sigma - process.alpha_rate(t) / alpha)
    return expand(sigma / rate, value) * value


def evolve(line: Tensor, start: Tensor, process: Process, t0: float, t1: float, form: str = "corrected") -> Tensor:
    """Solves the score equation in one dimension from t0 to t1, by central differences and scipy's BDF solver.

    At the ends of the line the score is extrapolated linearly. Far from the data it is nearly linear, and there the
    solution is transported outwards, so that the boundary values do not influence the interior.

    Args:
        line: Equally spaced points from well left to well right of the data. Shape: (n,).
        start: The score at t0. Shape: (n,).
        process: The process.
        t0, t1: First and last time.
        form: "paper" or "corrected".

    Returns:
        The score at t1. Shape: (n,).

    Raises:
        ValueError: when the solver fails.

    Example:
        >>> import torch
        >>> from psmlib.process import VP
        >>> line = torch.linspace(-3, 3, 61, dtype=torch.float64)
        >>> evolve(line, -line / .25, VP(0., 10.), .1, .2)[-1].round(decimals=3)     # N(0, 1/4) at .1, wider at .2
        tensor(-8.4630, dtype=torch.float64)
    """
    step = float(line[1] - line[0])

    def change(t: float, values) -> Tensor:
        s = torch.as_tensor(values, dtype=torch.float64)
        wide = torch.cat([2 * s[:1] - s[1:2], s, 2 * s[-1:] - s[-2:-1]])
        slope, bend = (wide[2:] - wide[:-2]) / (2 * step), (wide[2:] - 2 * s + wide[:-2]) / step**2
        parts = Terms(s[:, None], s[:, None], slope[:, None, None], bend[:, None])
        return right_side(parts, process, line[:, None], t, form)[:, 0].numpy()

    found = solve_ivp(change, (t0, t1), start.numpy(), method="BDF", rtol=1e-8, atol=1e-8)
    if not found.success:
        raise ValueError(f"no solution was found from t = {t0:g} to {t1:g}: take a finer line or a later start")
    return torch.from_numpy(found.y[:, -1])
