r"""The evidence bound of a diffusion stopped at T and its terms, by quadrature, for data whose density is known.

For :math:`dx = f x\,dt + g\,dw` on [0, T], a score s and a model :math:`\nu` of :math:`p_T` (Franzese et al., *How Much
Is Enough?*, Section 2.1, derived anew):

.. math:: E\log q(x) \ge L(s, T) = E\log\nu(x_T) - I(s, T) + R(T)
          = E\log p_{data} - G(s, T) - \mathrm{KL}[p_T\,\|\,\nu],

with I the loss of denoising score matching, K its minimum, attained by the true score, and G = I - K. In log SNR,
:math:`d\lambda = -g^2/\sigma^2\,dt`, and in D dimensions

.. math:: I = \tfrac12\int E|\hat\varepsilon-\varepsilon|^2\,|d\lambda|,\quad
          K = \tfrac12\int \frac{\alpha^2}{\sigma^2}\,E\,\mathrm{tr}\,\mathrm{Cov}[x_0|x_t]\,|d\lambda|,\quad
          G = \tfrac12\int E|\hat\varepsilon-\varepsilon^*|^2\,|d\lambda|,\quad
          R = D\log\frac{\sigma(T)}{\sigma(\epsilon)}.

**The cut-off.** K and R both grow like :math:`D\log(1/\sigma(\epsilon))` as :math:`\epsilon\to0`; only R - K is
finite. Here the integrals start at :math:`\epsilon` and bound the density of :math:`x_\epsilon`; the step from there to
the data is the reconstruction term of the exact decoder :math:`p(x_0|x_\epsilon)`,

.. math:: E[\log p(x_0|x_\epsilon) - \log p(x_\epsilon|x_0)] = E\log p_{data} - E\log p_\epsilon .

So L depends on :math:`\epsilon` only through the part of G below it, which is left out. For uniform boxes the Fisher
information diverges like :math:`1/\sigma(t)` at t = 0; the integrals are finite all the same, and the reconstruction
term is of the order of :math:`\sigma(\epsilon)` rather than of its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.diffusion_time.prior_kl import Density, kl_by_repeat, log_density_by_repeat, log_prior_of
from psmlib.exact.expectations import EPS, Quadrature, estimate, expectation, time_rule, weighted_sum
from psmlib.exact.mixture import DiffusedMixture
from psmlib.process import Process, Shortened
from psmlib.score import Score


def _rates(points: tuple[Tensor, Tensor], law: DiffusedMixture, score: Score | None, t: float) -> tuple[Tensor, Tensor]:
    """E|eps* - eps|^2 and, for a score, E|eps^ - eps*|^2, both from the posterior of x_0 given x_t. Shapes: (r,)."""
    x, alpha, sigma = points[0].flatten(0, 1), float(law.process.alpha(t)), float(law.process.sigma(t))
    mean, cov = law.posterior(x, t)
    least = (alpha / sigma) ** 2 * weighted_sum(points, lambda _: cov.diagonal(dim1=-2, dim2=-1).sum(-1))
    if score is None:
        return least, torch.zeros_like(least)
    off = (_eps(score, x, t) - (x - alpha * mean) / sigma).square().sum(1)
    return least, weighted_sum(points, lambda _: off)


def _eps(score: Score, x: Tensor, t: float) -> Tensor:
    with torch.no_grad():
        return score.eps(x.to(**score.tensor_options), t).to(x)


def gap_slope(
    score: Score, toy: Mixture, process: Process, T: float, rule: Quadrature | None = None
) -> tuple[float, float]:
    """Derivative of :func:`gap` in T, g^2/2 E|s - grad log p_T|^2, with its standard error.

    Example:
        >>> from psmlib.exact.known_error import ScoreWithError
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> off = ScoreWithError(toy.diffused(vp), lambda t: .1 * vp.sigma(t))       # an error of .1 in the score
        >>> abs(gap_slope(off, toy, vp, .5)[0] - .005 * float(vp.beta(.5))) < 1e-9
        True
    """
    rule, scale = rule or Quadrature(toy), 0.5 * float(process.diffusion2(T) / process.sigma(T) ** 2)
    return estimate(scale * _rates(rule.points(process, T), rule.law(process), score, T)[1])


@dataclass(frozen=True)
class ELBO:
    r"""The bound at one T with its terms, in nats.

    Attributes:
        T: Where the diffusion ends.
        eps: Where the integrals start.
        I: Loss of denoising score matching, :math:`\tfrac12\int g^2E|s-\nabla\log p(x_t|x_0)|^2`.
        K: Its minimum.
        R: :math:`\tfrac12\int E[g^2|\nabla\log p(x_t|x_0)|^2 - 2f x\cdot\nabla\log p(x_t|x_0)]`.
        G: Loss of evidence by the error of the score, I - K.
        KL: Loss of evidence by the prior, KL[p_T || nu].
        log_noise: Expected log density of x_T under the prior.
        log_data: Expected log density of the data, minus their entropy.
        reconstruction: The term of the step from eps to the data.
        elbo: By the definition, log_noise - I + R + reconstruction.
        residual: elbo - (log_data - G - KL), the error of all quadratures together.
        stderr: Standard errors of I, K, G, KL, log_data, elbo and residual, by name; 0 where quadrature is
            deterministic.
    """

    T: float
    eps: float
    I: float  # noqa: E741 - the paper's name
    K: float
    R: float
    G: float
    KL: float
    log_noise: float
    log_data: float
    reconstruction: float
    elbo: float
    residual: float
    stderr: dict[str, float] = field(repr=False)

    @property
    def decomposed(self) -> float:
        """The bound by its decomposition, log_data - G - KL; with Sobol points it varies less than ``elbo``."""
        return self.log_data - self.G - self.KL


def elbo_curve(
    toy: Mixture, process: Process, times: Sequence[float], *,
    score: Score | None = None, priors: Sequence[Density] | None = None,
    eps: float | None = None, rule: Quadrature | None = None,
) -> list[ELBO]:  # fmt: skip
    """The bound at several T from one pass over time.

    Args:
        toy: The distribution of x_0.
        process: The process, not stopped.
        times: Values of T, ascending.
        score: Trained or exact; the true score by default, and then G = 0.
        priors: Models of the distribution of x_T, one for each T; by default the prior of the process stopped at T.
        eps: Where the integrals start; by default 1e-5 of the process's length.
        rule: Quadrature for expectations.

    Raises:
        ValueError: when times do not ascend within (eps, process.T], or the priors are not as many or for other times.

    Example:
        >>> from psmlib.process import VP
        >>> toy = Mixture(gaussians=[(.3, [1.], .01), (.7, [3.], .25)])
        >>> [round(b.KL, 4) for b in elbo_curve(toy, VP(), [.2, .6])]
        [1.92, 0.0755]
    """
    rule, eps = rule or Quadrature(toy), EPS * process.T if eps is None else eps
    ends = [Shortened(process, T).T for T in times]
    if not ends or not 0 < eps < ends[0] or any(b <= a for a, b in zip(ends, ends[1:], strict=False)):
        raise ValueError(f"times must ascend from above eps = {eps:g} > 0, got {list(times)}: sort them, drop repeats")
    if priors is not None and len(priors) != len(ends):
        raise ValueError(f"there are {len(priors)} priors for {len(ends)} times: give one for each T")
    law = rule.law(process)
    blocks = getattr(score, "partition", None)
    inner = [e for e in (blocks.edges if blocks else ()) if eps < e < ends[-1]]
    edges = sorted({eps, *ends, *inner})
    K, G = ([torch.zeros(1, dtype=torch.float64)] for _ in "KG")
    for t, weight, piece in zip(*(v.tolist() for v in time_rule(process, edges)), strict=True):
        if piece == len(K) - 1:
            K.append(K[-1])
            G.append(G[-1])
        least, gained = _rates(rule.points(process, t), law, score, t)
        K[-1], G[-1] = K[-1] + 0.5 * weight * least, G[-1] + 0.5 * weight * gained
    log_data, rest = log_density_by_repeat(rule, process, 0.0), _reconstruction(rule, process, eps)
    out = []
    for T, prior in zip(ends, priors or [None] * len(ends), strict=True):
        i, log_prior = edges.index(T), log_prior_of(process, T, prior)
        R = normaliser(process, toy.dim, T, eps=eps)
        log_noise = expectation(rule, process, T, lambda x, f=log_prior: f(x).to(x))
        out.append(_bound(T, eps, R, K[i], G[i], kl_by_repeat(rule, process, T, log_prior), log_noise, log_data, rest))
    return out


def _reconstruction(rule: Quadrature, process: Process, eps: float) -> Tensor:
    """E log p_data - E log p_eps, with the same kind of points for both. Shape: (r,)."""
    law = rule.law(process)
    later = rule.points(process, eps)
    data = rule.points(process, 0.0) if len(later[0]) > 1 else rule.data()
    return weighted_sum(data, rule.toy.log_prob) - weighted_sum(later, lambda x: law.log_prob(x, eps))


def _bound(T, eps, R, K, G, KL, log_noise, log_data, rest) -> ELBO:
    """Assembles the terms; each but R has one value for each repeat."""
    elbo = log_noise - (K + G) + R + rest
    parts = {"I": K + G, "K": K, "G": G, "KL": KL, "log_noise": log_noise, "log_data": log_data, "elbo": elbo}
    parts |= {"reconstruction": rest, "residual": elbo - (log_data - G - KL)}
    found = {name: estimate(values) for name, values in parts.items()}
    means, errors = ({name: v[i] for name, v in found.items()} for i in (0, 1))
    return ELBO(T=T, eps=eps, R=R, stderr=errors, **means)


def elbo(
    toy: Mixture, process: Process, T: float | None = None, *, score: Score | None = None,
    prior: Density | None = None, eps: float | None = None, rule: Quadrature | None = None,
) -> ELBO:  # fmt: skip
    """The bound at one T, by default the process's own end; see :func:`elbo_curve`.

    Example:
        >>> from psmlib.process import VP
        >>> b = elbo(Mixture(gaussians=[(.3, [1.], .01), (.7, [3.], .25)]), VP(), .4)
        >>> round(b.log_noise - b.I + b.R + b.KL, 4)          # does not depend on T: E log p at eps
        -0.852
    """
    priors = None if prior is None else [prior]
    return elbo_curve(toy, process, [process.T if T is None else T], score=score, priors=priors, eps=eps, rule=rule)[0]


def gap(
    score: Score, toy: Mixture, process: Process, T: float, *, eps: float | None = None, rule: Quadrature | None = None
) -> tuple[float, float]:
    """G, the loss of evidence by the errors of a score on [eps, T], in nats, with its standard error.

    Example:
        >>> from psmlib.exact.known_error import ScoreWithError
        >>> from psmlib.process import VP
        >>> toy, vp = Mixture(gaussians=[(1., [1.], 1.)]), VP()
        >>> off = ScoreWithError(toy.diffused(vp), lambda t: .1 * vp.sigma(t))
        >>> abs(gap(off, toy, vp, .5)[0] - .005 * float(vp.integral(.5))) < 1e-4
        True
    """
    bound = elbo(toy, process, T, score=score, eps=eps, rule=rule)
    return bound.G, bound.stderr["G"]


def normaliser(process: Process, dim: int, T: float, *, eps: float | None = None) -> float:
    """R: D log(sigma(T) / sigma(eps)), because g^2/sigma^2 + 2 f is the rate of log sigma^2.

    Example:
        >>> from psmlib.process import VP
        >>> vp = VP()
        >>> whole, first, rest = (normaliser(vp, 3, T, eps=e) for T, e in ((.5, .1), (.3, .1), (.5, .3)))
        >>> abs(whole - first - rest) < 1e-9
        True
    """
    return dim * float((process.sigma(T) / process.sigma(EPS * process.T if eps is None else eps)).log())
