r"""Bits per dimension of images: one measurement protocol for all methods, and that of the released code.

In our protocol test images are dequantised with uniform noise, drawn once for all methods, and the probe of
Hutchinson's estimator is the same at all times. There are two initial states. With ``start="data"`` it is the image
itself, and the result is :math:`\log p_{t_0}(x_0)`, without a reconstruction term, as in the papers. With
``start="noised"`` it is :math:`x_{t_0} = \alpha x_0 + \sigma\varepsilon`; with the decoder
:math:`N(x_{t_0}/\alpha, \sigma^2/\alpha^2 I)` its reconstruction term cancels the entropy of the noise and

.. math:: \log p(x_0) \ge E_\varepsilon[\log p_{t_0}(\alpha x_0 + \sigma\varepsilon)] + D \log\alpha,

a bound on the likelihood of the data under the model that ends with this decoder (Song et al., 2021, Appendix C;
High-precision paper, Section 4.2). It holds for the mean over the noise, of which each image has one draw.

The released scripts of Parallel Score Matching do not dequantise, and draw a new probe at every evaluation. For a model
that has learnt that values are discrete, their result need not be a code length: see :func:`undithered_offset`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psmlib.data.images import SPLITS, Images
from psmlib.likelihood import log_likelihood
from psmlib.machine.checks import check_choice
from psmlib.process import Process
from psmlib.score import Score

STARTS = ("data", "noised")


@dataclass(frozen=True)
class ImageProtocol:
    """Settings of a likelihood measurement of images.

    Args:
        t0: First time of the integration.
        steps: Steps of the solver, not counting added block borders.
        method: Method of :mod:`psmlib.solvers`.
        grid: Time grid of :func:`psmlib.likelihood.log_likelihood`.
        divergence: "hutchinson", "exact" or, with Euler steps, "logdet".
        fresh_probes: Whether each evaluation has a new probe.
        dequantised: Whether uniform noise is added to the levels; else level k becomes k/(K-1).
        start: "data" or "noised".
        images: Number of images, the first ones of the split; None for all.
        seed: Seed of the noise of dequantisation and of the start, and of the probe.

    Raises:
        ValueError: for an unknown start, or no images; solver, grid and divergence are checked when they are used.

    Example:
        >>> print(ImageProtocol(images=100))
        t0 = 0.001, rk4 with 20 warped steps, one fixed probe, dequantised, no reconstruction term, 100 images
    """

    t0: float = 1e-3
    steps: int = 20
    method: str = "rk4"
    grid: str = "warped"
    divergence: str = "hutchinson"
    fresh_probes: bool = False
    dequantised: bool = True
    start: str = "data"
    images: int | None = None
    seed: int = 10**6

    def __post_init__(self):
        check_choice("start", self.start, STARTS, of="a protocol")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images must be a positive number or None for all of a split, got {self.images}")

    def but(self, **changes) -> ImageProtocol:
        """The same protocol with some settings changed.

        Args:
            changes: New settings by name.

        Example:
            >>> ImageProtocol().but(divergence="exact").divergence
            'exact'
        """
        return replace(self, **changes)

    @property
    def released(self) -> ImageProtocol:
        """The protocol of the released code with as many steps: t0 = .001, no dequantisation, new probes.

        Example:
            >>> print(ImageProtocol(divergence="exact").released)
            t0 = 0.001, rk4 with 20 blocks steps, fresh probes, not dequantised, no reconstruction term, all images
        """
        settings = dict(t0=1e-3, divergence="hutchinson", dequantised=False, grid="blocks", start="data")
        return self.but(fresh_probes=True, **settings)

    def __str__(self) -> str:
        solver = f"{self.method} with {self.steps} {self.grid} steps"
        probe = "fresh probes" if self.fresh_probes else "one fixed probe"
        probe = "exact trace" if self.divergence == "exact" else probe
        noise = "dequantised" if self.dequantised else "not dequantised"
        term = "no reconstruction term" if self.start == "data" else "noised start with reconstruction"
        return f"t0 = {self.t0:g}, {solver}, {probe}, {noise}, {term}, {self.images or 'all'} images"


def inputs(images: Images, protocol: ImageProtocol, split: str = "test") -> Tensor:
    """The images of a split as points, centred as in training.

    Args:
        images: The data.
        protocol: Determines their number and their dequantisation.
        split: "train", "validation" or "test".

    Returns:
        Shape: (n, C, H, W), float64.

    Raises:
        ValueError: for an unknown split.

    Example:
        >>> from psmlib.data.images import load
        >>> inputs(load("digits"), ImageProtocol(images=3)).shape
        torch.Size([3, 1, 8, 8])
    """
    check_choice("split", split, SPLITS, of=images.name)
    levels = getattr(images, split)[: protocol.images]
    if protocol.dequantised:
        return images.dequantise(levels, torch.Generator().manual_seed(protocol.seed), centred=True)
    return whole_levels(images, levels)


def whole_levels(images: Images, levels: Tensor) -> Tensor:
    """Levels k as k/(K-1), minus their training mean: the data of the released code.

    Args:
        images: The data set, with K levels.
        levels: Some of its images. Shape: (n, C, H, W).

    Returns:
        Shape: (n, C, H, W), float64.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> bool(whole_levels(digits, digits.train).mean(0).abs().max() < 1e-12)
        True
    """
    mean = images.levels * images.centre - 0.5  # of the levels; images.centre is the mean of the dequantised images
    return (levels.double() - mean) / (images.levels - 1)


def bits(score: Score, process: Process, images: Images, protocol: ImageProtocol, split: str = "test") -> Tensor:
    """Bits per dimension of each image of a split. Shape: (n,), float64, on the CPU.

    Args:
        score: Exact or trained, of centred images on [0, 1).
        process: Its Gaussian path.
        images: The data.
        protocol: The settings of the measurement.
        split: "train", "validation" or "test".

    Raises:
        ValueError: for an unknown split, arguments that :func:`psmlib.likelihood.log_likelihood` refuses, or a
            likelihood that is not finite because the ODE solution diverged.

    Example:
        >>> from psmlib.data.images import load
        >>> from psmlib.nets import unet
        >>> from psmlib.bank.image_bank import ImageBank
        >>> from psmlib.partition import SA
        >>> from psmlib.process import VP
        >>> score = ImageBank(unet.small(dim=8), 1).score(SA, VP(0., 10.))
        >>> bits(score, VP(0., 10.), load("digits"), ImageProtocol(images=3, steps=2)).shape
        torch.Size([3])
    """
    x, log_alpha = inputs(images, protocol, split), 0.0
    if protocol.start == "noised":
        t0 = torch.tensor(protocol.t0, dtype=torch.float64)
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(protocol.seed + 1), dtype=x.dtype)
        x, log_alpha = process.perturb(x, t0, eps), math.log(float(process.alpha(t0)))
    settings = {k: getattr(protocol, k) for k in ("t0", "steps", "method", "grid", "divergence", "fresh_probes")}
    found = log_likelihood(score, process, x.to(**score.tensor_options), seed=protocol.seed + 2, **settings)
    log_prob = found.log_prob.cpu().double() + images.dim * log_alpha
    if bad := int((~log_prob.isfinite()).sum()):
        raise ValueError(f"{bad} of {len(log_prob)} likelihoods are not finite: train longer, or use more steps")
    return images.bits_per_dim(log_prob)


def undithered_offset(process: Process, levels: int, t0: float, *, alike: bool = False) -> float:
    r"""Result of the released protocol minus the code length, for a perfect model of levels, in bits per dimension.

    Without dequantisation the law of :math:`x_{t_0}` is a mixture of Gaussians of width sigma around the levels, which
    are 1/(K-1) apart. At the centre of its Gaussian (but for the shift from x to alpha x), a level of probability P has
    the density :math:`P/\sqrt{2\pi}\sigma` if its neighbours have probability 0, and if theirs is also P

    .. math:: \frac{P}{\sqrt{2\pi}\sigma}\sum_j e^{-j^2/2(K-1)^2\sigma^2},

    so that :math:`-\log_2 p(x) + \log_2 K` is :math:`-\log_2 P` plus the logarithm of :math:`K\sqrt{2\pi}\,\sigma`
    divided by that sum. At t_0 = .001 the Gaussians of 17 levels do not overlap, and the result falls without bound as
    t_0 goes to 0; those of 256 levels overlap, and with equally probable neighbours the difference is nearly 0.

    Args:
        process: The Gaussian path.
        levels: Number of levels, K.
        t0: First time of the integration.
        alike: Whether all levels are equally probable; else the neighbours of a level have probability 0.

    Returns:
        The constant that is added to the code length.

    Example:
        >>> from psmlib.process import VP
        >>> [round(undithered_offset(VP(0., 10.), 17, t0), 2) for t0 in (1e-3, 1e-4)]
        [-3.39, -6.71]
        >>> [round(undithered_offset(VP(0., 10.), 256, 1e-3, alike=alike), 2) for alike in (False, True)]
        [0.52, 0.0]
    """
    sigma = float(process.sigma(t0))
    j = torch.arange(-levels, levels + 1, dtype=torch.float64)
    overlap = float(torch.exp(-0.5 * (j / ((levels - 1) * sigma)) ** 2).sum()) if alike else 1.0
    return math.log2(levels * math.sqrt(2 * math.pi) * sigma / overlap)
