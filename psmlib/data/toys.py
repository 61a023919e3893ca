r"""Toy densities in closed form: mixtures of Gaussians and of rotated uniform boxes.

``HG`` and ``TY`` are the two toys of Parallel Score Matching (Table 1, Figure 2): a hash sign with five Gaussians, and
the words THANK YOU under a flower. ``two_gaussians`` is the one-dimensional toy of *How Much Is Enough?* (Franzese et
al., Appendix K.1).
"""

import copy
import math
from functools import cached_property
from typing import Self

from psmlib.exact.components import Components
from psmlib.exact.cross_entropy import entropy
from psmlib.exact.mixture import DiffusedMixture
from psmlib.machine.checks import check_choice
from psmlib.process import VE, Process


class Mixture(Components):
    """A weighted mixture of Gaussians and of uniform densities on rotated boxes, whose diffused score is known.

    Arguments as for :class:`psmlib.exact.components.Components`.

    Example:
        >>> from psmlib.process import VP
        >>> toy = Mixture(gaussians=[(1., [0., 0.], 1.)])
        >>> round(float(toy.diffused(VP()).log_prob(toy.mean[None], .5)), 6)             # VP leaves N(0, I) unchanged
        -1.837877
    """

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in nats; :func:`psmlib.exact.cross_entropy.entropy` also gives its error."""
        return entropy(self)[0]

    def centred(self) -> Self:
        """The same density moved to mean zero.

        Example:
            >>> bool(TY().centred().mean.abs().max() < 1e-12)
            True
        """
        moved = copy.copy(self)
        moved.gauss_mean = self.gauss_mean - self.mean
        moved.box_centre = self.box_centre - self.mean
        return moved

    def diffused(self, process: Process) -> DiffusedMixture:
        """The exact distribution of x_t under ``process``: a Score with ``log_prob(x, t)``."""
        return DiffusedMixture(self, process)


def _box(weight, x, y):
    """An axis-parallel box from its two intervals."""
    return weight, [(x[0] + x[1]) / 2, (y[0] + y[1]) / 2], [(x[1] - x[0]) / 2, (y[1] - y[0]) / 2], 0.0


def HG() -> Mixture:
    """The hash sign with five Gaussians (Parallel Score Matching, Figure 2, lower row).

    Example:
        >>> round(HG().entropy, 6)
        0.954479
    """
    long, bar, low = (-1.25, 1.25), (0.4, 0.5), (-0.5, -0.4)
    corners = [(0, 0), (1.25, 1.25), (1.25, -1.25), (-1.25, 1.25), (-1.25, -1.25)]
    boxes = [_box(1, bar, long), _box(1, low, long), _box(1, long, bar), _box(1, long, low)]
    return Mixture(gaussians=[(1, c, 0.02) for c in corners], boxes=boxes, name="HG")


def TY() -> Mixture:
    """THANK YOU under a flower (Parallel Score Matching, Figure 2, upper row); weights are the released counts.

    Example:
        >>> ty = TY()
        >>> len(ty.weights), [round(float(m), 3) for m in ty.mean]
        (49, [0.047, 0.092])
    """
    gaussians = [(4500, (0, 0.6), 0.015)]
    for count, n, radius, var in [(1000, 8, 0.45, 0.003), (300, 16, 0.7, 0.001)]:
        angles = [2 * math.pi * i / n for i in range(n)]
        gaussians += [(count, (radius * math.cos(a), 0.6 + radius * math.sin(a)), var) for a in angles]
    top, row = (-0.8, -0.4), (-1.3, -0.9)
    letters = [
        _box(500, (-1, -0.9), (-0.8, -0.5)), _box(500, (-1.1, -0.8), (-0.5, -0.4)),  # T
        _box(500, (-0.6, -0.5), top), _box(125, (-0.5, -0.4), (-0.65, -0.55)), _box(500, (-0.4, -0.3), top),  # H
        (500, (0, -0.6), (0.2, 0.05), 70), (500, (0.2, -0.6), (0.2, 0.05), 110), _box(125, (0, 0.2), (-0.7, -0.6)),  # A
        _box(500, (0.4, 0.5), top), (500, (0.6, -0.6), (0.2, 0.05), 130), _box(500, (0.7, 0.8), top),  # N
        _box(500, (1, 1.1), top), (200, (1.2, -0.7), (0.1, 0.05), 130), (200, (1.2, -0.5), (0.1, 0.05), 45),  # K
        _box(200, (-0.6, -0.5), (-1.3, -1)), (200, (-0.45, -1), (0.1, 0.05), 45), (200, (-0.65, -1), (0.1, 0.05), 130),
        _box(500, (-0.25, -0.15), row), _box(500, (0.15, 0.25), row),  # O
        _box(500, (-0.15, 0.15), (-1.3, -1.2)), _box(500, (-0.15, 0.15), (-1, -0.9)),
        _box(500, (0.45, 0.55), row), _box(500, (0.85, 0.95), row), _box(500, (0.55, 0.85), (-1.3, -1.2)),  # U
    ]  # fmt: skip
    return Mixture(gaussians=gaussians, boxes=letters, name="TY")


def two_gaussians() -> Mixture:
    r""":math:`p = 0.3\,N(1, 0.1^2) + 0.7\,N(3, 0.5^2)`; neither centred nor of unit variance.

    Example:
        >>> toy = two_gaussians()
        >>> round(float(toy.mean), 9), round(float(toy.cov), 9)
        (2.4, 1.018)
    """
    return Mixture(gaussians=[(0.3, [1.0], 0.1**2), (0.7, [3.0], 0.5**2)], name="line")


def exponential_ve(base: float = 25.0) -> VE:
    r"""The toy's process :math:`dx = b^t\,dw`, with variance :math:`(b^{2t}-1)/(2\log b)`, as a VE path.

    Args:
        base: b. Its value is missing in our copy of the paper; 25 is the usual one for this form.

    Raises:
        ValueError: when base is not above 1.

    Example:
        >>> round(float(exponential_ve(25.).diffusion2(.5)), 9)                  # g^2 = b^(2t)
        25.0
    """
    if not base > 1:
        raise ValueError(f"exponential_ve needs a base above 1, got {base}: the noise must grow")
    least = 1 / math.sqrt(2 * math.log(base))
    return VE(least, base * least)


TOYS = {"TY": TY, "HG": HG}


def load_toy(name: str) -> Mixture:
    """The centred toy of that name, as the papers' scripts train on it.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> load_toy("HH")
        Traceback (most recent call last):
        ...
        ValueError: unknown toy 'HH': use one of TY, HG
    """
    check_choice("toy", name, TOYS)
    return TOYS[name]().centred()
