"""The two Gaussians on a line on which *How Much Is Enough?* shows its trade-off (Franzese et al., Appendix K.1)."""

from __future__ import annotations

import math

from psmlib.data.toys import Mixture
from psmlib.process import VE


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
        base: b. The text of the paper that is at hand has lost its value; 25 is the usual one of this form.

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
