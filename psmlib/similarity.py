r"""How alike the denoising tasks of two times are (Multistage paper, Section 4.2, Algorithm 1).

With one data point and one noise, :math:`x_t = \alpha_t x_0 + \sigma_t\varepsilon` at every time. The similarity of two
times is the share of coordinates at which the optimal denoisers' answers differ by no more than :math:`\eta`,
averaged over data points and noises:

.. math:: \mathcal S(t_a, t_b) = E\Bigl[\tfrac1n \#\{i:\; |\varepsilon^*_{t_a}(x_{t_a}) -
          \varepsilon^*_{t_b}(x_{t_b})|_i \le \eta\}\Bigr].

The paper compares noises; at t = 0 there is none left to tell, and the limit is the noise itself. Its released code
compares something else. Three readings are offered:

* ``"paper"``: :math:`\varepsilon^*_t(x_t)` with :math:`\varepsilon^*_a(x_a)`, as printed;
* ``"same point"``: as printed, but at the noisy end with :math:`(x_t - \alpha_t\,\mathrm{mean})/\sigma_t` at the *same*
  :math:`x_t`, as in an early notebook of the authors; it says nothing of anchors between the two ends;
* ``"denoised"``: :math:`E[x_0\mid x_t]` with :math:`E[x_0\mid x_a]`, as in their later script.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psmlib.gaussian_path import expand
from psmlib.score import Score

READINGS = ("paper", "same point", "denoised")
_ROWS = 4096


def similarity(
    score: Score, x0: Tensor, eps: Tensor, t: Tensor, anchor: float, *, eta: float, reading: str = "paper",
    mean: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of coordinates that agree between t and the anchor, for each draw.

    Args:
        score: The optimal denoiser of a data set, an exact density, or a trained network.
        x0: Data points. Shape: (K, *shape).
        eps: Standard normal noise. Shape: (K, *shape).
        t: A time after 0 for each. Shape: (K,).
        anchor: The time to compare with; 0 stands for the limit.
        eta: Largest difference that counts as agreement: in units of the noise, or of the data for "denoised".
        reading: One of :data:`READINGS`.
        mean: Mean of the data, for "same point". Shape: (*shape).

    Returns:
        Shares in [0, 1]. Shape: (K,).

    Raises:
        ValueError: for an unknown reading, a threshold below 0, times that are not after 0, and for "same point"
            without a mean or with an anchor between the ends.

    Example:
        >>> from psmlib.empirical import DiffusedData
        >>> from psmlib.process import VP
        >>> g = torch.Generator().manual_seed(0)
        >>> data = torch.rand(50, 8, generator=g, dtype=torch.float64)
        >>> best, eps = DiffusedData(data, VP()), torch.randn(50, 8, generator=g, dtype=torch.float64)
        >>> t = torch.linspace(.01, 1, 50, dtype=torch.float64)
        >>> found = similarity(best, data, eps, t, 0., eta=2 / 255)
        >>> float(found[:5].mean()) > float(found[20:30].mean())
        True
    """
    if reading not in READINGS:
        raise ValueError(f"unknown reading {reading!r} of the similarity: use one of {', '.join(READINGS)}")
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    if not bool((t > 0).all()):
        raise ValueError("similarities need times after 0, where the noise can be told: take t > 0")
    if reading == "same point" and anchor not in (0, score.process.T):
        raise ValueError(
            f'the reading "same point" knows the two ends of time alone, not {anchor:.3g}: use another reading, or at '
            "most three intervals"
        )
    if reading == "same point" and anchor > 0 and mean is None:
        raise ValueError('the reading "same point" compares with the mean of the data: give mean=')
    parts = []
    for i in range(0, len(x0), _ROWS):
        rows = slice(i, i + _ROWS)
        a, b = _answers(score, x0[rows], eps[rows], t[rows], anchor, reading, mean)
        parts.append(((a - b).abs() <= eta).flatten(1).double().mean(1))
    return torch.cat(parts) if parts else x0.new_zeros(0, dtype=torch.float64)


def _answers(score, x0, eps, t, anchor, reading, mean) -> tuple[Tensor, Tensor]:
    """What is said at t and what at the anchor. Shapes: (K, *shape)."""
    process = score.process
    x = process.perturb(x0, t, eps)
    if reading == "denoised":
        at_anchor = x0 if anchor == 0 else score.denoised(process.perturb(x0, anchor, eps), anchor)
        return score.denoised(x, t), at_anchor
    told = score.eps(x, t)
    if anchor == 0:
        return told, eps
    if reading == "same point":
        return told, (x - expand(process.alpha(t), x) * mean) / expand(process.sigma(t), x)
    return told, score.eps(process.perturb(x0, anchor, eps), anchor)


def running_mean(t: Tensor, share: Tensor, *, downwards: bool = False) -> tuple[Tensor, Tensor]:
    """Times in order, and the mean share of all draws from the end that is started at up to each of them.

    Args:
        t: Times. Shape: (K,).
        share: Shape: (K,).
        downwards: Whether to start at the largest time.

    Example:
        >>> running_mean(torch.tensor([.2, .1]), torch.tensor([0., 1.]))
        (tensor([0.1000, 0.2000]), tensor([1.0000, 0.5000]))
    """
    order = t.argsort(descending=downwards)
    counts = torch.arange(1, len(t) + 1, device=t.device)
    return t[order], share[order].cumsum(0) / counts


def curve(t: Tensor, share: Tensor, bins: int, lo: float, hi: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean share by time: centres of equal bins, means and standard errors; empty bins are left out."""
    which, width, lines = ((t - lo) / (hi - lo) * bins).long().clamp(0, bins - 1), (hi - lo) / bins, []
    for i in range(bins):
        found = share[which == i]
        if len(found) > 1:
            lines.append((lo + (i + 0.5) * width, float(found.mean()), float(found.std() / len(found) ** 0.5)))
    return torch.tensor(lines, dtype=torch.float64).reshape(-1, 3).unbind(1)
