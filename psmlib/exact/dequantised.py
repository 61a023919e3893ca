r"""The optimal denoiser of dequantised images.

With fresh dequantisation noise a network is trained not on a finite set of points but on N boxes: pixel d of image i is
uniform on the cell of its level :math:`k_{id}`. Given the image its pixels are independent, and
:mod:`psmlib.exact.axis_laws` gives the diffused density of each in closed form, so the optimal denoiser is known
exactly. Where sigma is many times the width of a cell it equals that of the cells' middles,
:class:`psmlib.exact.finite_set.DiffusedData`, which costs far less; at smaller sigma the latter would mistake
dequantisation noise for diffusion noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from psmlib.exact.axis_laws import Axis, uniform_axis
from psmlib.process import Process, as_time, expand
from psmlib.score import Score

_NUMBERS = 2**20  # in one intermediate tensor; axis_laws holds some twenty of them
_NEGLIGIBLE = 1e-20  # posterior weights below this change no digit of a sum


class Posterior(NamedTuple):
    """The posterior of the clean images given noisy ones.

    Attributes:
        log_density: Log density of x_t, in nats. Shape: (n,).
        score: Its gradient. Shape: (n, *shape).
        mean: Expected x_0. Shape: (n, *shape).
        variance: Trace of the covariance of x_0. Shape: (n,).
        divergence: Of the score. Shape: (n,).
        score_jvp: Jacobian of the score times the tangent, or None. Shape: (n, *shape).
    """

    log_density: Tensor
    score: Tensor
    mean: Tensor
    variance: Tensor
    divergence: Tensor
    score_jvp: Tensor | None


class DequantisedData(Score):
    r"""The exact Score of images with uniform dequantisation noise: the minimiser of the loss that training sees.

    With :math:`q_{dk}` the diffused law of pixel d at level k and :math:`a_{dk}` its score,

    .. math:: w_i = \mathrm{softmax}_i \sum_d \log q_{dk_{id}}(x_d),\qquad
              \varepsilon^*_d = -\sigma\sum_k P_{dk}\,a_{dk}(x_d),\qquad P_{dk} = \sum_i w_i\,1[k_{id} = k],

    where nothing cancels as sigma goes to 0. Computed in float64; a point costs the densities of D K axes and N D
    additions.

    Args:
        levels: Whole levels of the images that training draws from. Shape: (N, C, H, W), uint8.
        factor: Width of a level.
        shift: What is added to scaled levels; its dtype is that of the points. Shape: broadcasts to (C, H, W).
        process: The process.
        flat: Whether points have shape (n, D) rather than (n, C, H, W).

    Raises:
        ValueError: later, for points of another shape, and for times at which there is no noise.

    Example:
        >>> from psmlib.data.images import load
        >>> from psmlib.process import VP
        >>> digits, vp = load("digits"), VP(0., 10.)
        >>> best = digits.draws(centred=True).diffused(vp)
        >>> x = digits.dequantise(digits.train[:5], torch.Generator().manual_seed(0), centred=True)
        >>> best.top_weights(vp.perturb(x, .05, torch.ones_like(x)), .05, 1)[1].flatten().tolist()
        [0, 1, 2, 3, 4]
    """

    native = "eps"

    def __init__(self, levels: Tensor, factor: float, shift: Tensor, process: Process, *, flat: bool = False):
        self.process, self.dtype = process, shift.dtype
        self.levels, shape = levels.flatten(1), tuple(levels.shape[1:])
        dim = self.levels.shape[1]
        self.shape = (dim,) if flat else shape
        count, like = int(self.levels.max()) + 1, {"dtype": torch.float64, "device": self.levels.device}
        shift = shift.to(**like).broadcast_to(shape).reshape(-1, 1)
        self._middles = factor * (torch.arange(count, **like) + 0.5) + shift  # (D, K)
        self._half = torch.tensor(factor / 2, **like)
        self._first = torch.arange(dim, device=self.levels.device) * count  # each pixel's first row in a table

    @property
    def tensor_options(self) -> dict:
        return {"dtype": self.dtype, "device": self.levels.device}

    def _sums(self, table: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """For each chosen image, the sum of its pixels' entries in a table (n, D, K). Shape: (N, n)."""
        rows = table.flatten(1).mT.contiguous()
        parts = self.levels[chosen].split(max(1, _NUMBERS // len(self._first)))
        return torch.cat([embedding_bag(part.long() + self._first, rows, mode="sum") for part in parts])

    def _shares(self, weight: Tensor, chosen: Tensor) -> Tensor:
        """Weight (N, n) of the chosen images at each level of each pixel. Shape: (n, D, K)."""
        n, d = weight.shape[1], len(self._first)
        out, step = weight.new_zeros(self._middles.numel(), n), max(1, _NUMBERS // (d * max(1, n)))
        for some, part in zip(weight.split(step), self.levels[chosen].split(step), strict=True):
            out.index_add_(0, (part.long() + self._first).flatten(), some.repeat_interleave(d, 0))
        return out.mT.reshape(n, *self._middles.shape)

    def _axes(self, x: Tensor, t: Tensor) -> Axis:
        """The diffused law of each pixel at each level; all of shape (n, D, K)."""
        alpha, sigma = (c[:, None, None] if c.dim() else c for c in (self.process.alpha(t), self.process.sigma(t)))
        return uniform_axis(x[:, :, None] - alpha * self._middles, self._half, alpha, sigma)

    def _log_weights(self, x: Tensor, t: Tensor, _: None = None) -> tuple[Axis, Tensor]:
        axis = self._axes(x, t)
        return axis, self._sums(axis.log_density)

    def _posterior(self, x: Tensor, t: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        axis, logits = self._log_weights(x, t)
        weight = logits.softmax(0)
        chosen = (weight > _NEGLIGIBLE).any(1).nonzero()[:, 0]
        weight = weight[chosen]
        share, data = self._shares(weight, chosen), self._middles + axis.mean
        score, mean = ((share * each).sum(2) for each in (axis.score, data))
        apart = axis.score - score[..., None]
        variance = (share * (axis.variance + (data - mean[..., None]) ** 2)).sum((1, 2))
        divergence = (share * (axis.curvature + apart**2)).sum((1, 2))
        found = (logits.logsumexp(0) - math.log(len(self.levels)), score, mean, variance, divergence)
        if u is None:
            return found
        # the covariance, under the posterior of the images, of their scores along u
        along = self._shares(weight * self._sums(apart * u[..., None], chosen), chosen)
        return *found, (share * axis.curvature).sum(2) * u + (along * apart).sum(2)

    def _in_pieces(self, f: Callable, x: Tensor, t: float | Tensor, u: Tensor | None = None) -> list[Tensor]:
        """f(x, t, u) on flat points in float64, in pieces that limit the memory."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        t = as_time(t, x).double()
        if not bool((self.process.sigma(t) > 0).all()):
            raise ValueError("sigma must be positive, got 0: give a later time")
        step = max(1, min(_NUMBERS // self._middles.numel(), 4 * _NUMBERS // len(self.levels)))
        flat, along = x.flatten(1).double(), None if u is None else u.flatten(1).double()
        parts = []
        for i in range(0, max(1, len(x)), step):
            part = slice(i, i + step)
            parts.append(f(flat[part], t[part] if t.dim() else t, None if along is None else along[part]))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def posterior(self, x: Tensor, t: float | Tensor, tangent: Tensor | None = None) -> Posterior:
        """The posterior of x_0 given x_t = x, from one pass over the images."""
        found = [value.to(x.dtype) for value in self._in_pieces(self._posterior, x, t, tangent)]
        found = [value.reshape(x.shape) if value.dim() == 2 else value for value in found]
        return Posterior(*found, *[None] * (tangent is None))

    def top_weights(self, x: Tensor, t: float | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k images with the largest posterior probability given x: probabilities and indices. Shapes: (n, k)."""
        weight, index = self._in_pieces(lambda *given: self._log_weights(*given)[1].softmax(0).mT.topk(k), x, t)
        return weight.to(x.dtype), index

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Log density of x_t, in nats. Shape: (n, *shape) -> (n,)."""
        [total] = self._in_pieces(lambda *given: (self._log_weights(*given)[1].logsumexp(0),), x, t)
        return (total - math.log(len(self.levels))).to(x.dtype)

    def _sigma(self, x: Tensor, t: float | Tensor) -> Tensor:
        return expand(self.process.sigma(as_time(t, x).double()), x)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        return -self._sigma(x, t) * self.posterior(x, t).score

    def predict_jvp(self, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        found, sigma = self.posterior(x, t, u), self._sigma(x, t)
        return -sigma * found.score, -sigma * found.score_jvp

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t).score

    def denoised(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t).mean

    def divergence(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.posterior(x, t).divergence

    def velocity_and_divergence(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        found, t, p = self.posterior(x, t), as_time(t, x).double(), self.process
        down, up, alpha, sigma = p.alpha_rate(t), p.sigma_rate(t), p.alpha(t), p.sigma(t)
        velocity = expand(down, x) * found.mean - expand(up * sigma, x) * found.score
        change = down * alpha / sigma**2 * found.variance - up * sigma * found.divergence
        return velocity, change.to(x.dtype)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.velocity_and_divergence(x, t)[0]
