r"""Dequantisation of grey levels, and bits per dimension of the dequantised data.

Uniform dequantisation puts a level :math:`k \in \{0, \dots, K-1\}` at :math:`(k + u)/K`, :math:`u \sim U[0, 1)`, and
an affine map of width :math:`w` takes :math:`[0, 1)` to the network's coordinates. By Jensen's inequality the
log density of the continuous model bounds the log probability of the levels (Theis et al. 2016, Section 3.1):

.. math:: -\frac{1}{D} \log_2 P(k) \le -\frac{E_u \log p(x)}{D \ln 2} + \log_2 K - \log_2 w
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from psmlib.machine.checks import check_choice, check_count, floating

SCALES: dict[str, tuple[float, float]] = {"unit": (1.0, 0.0), "symmetric": (2.0, -1.0)}
"""Width and left end of the interval that each scaling fills: [0, 1) and [-1, 1)."""


def affine(scale: str) -> tuple[float, float]:
    """Width and left end of a named scaling.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> affine("symmetric")
        (2.0, -1.0)
    """
    check_choice("scale", scale, SCALES)
    return SCALES[scale]


def dequantise(
    x_levels: Tensor, levels: int, generator: torch.Generator | None = None, *, scale: str = "unit",
    dtype: torch.dtype = torch.float64,
) -> Tensor:  # fmt: skip
    r"""Integer levels with uniform noise, :math:`w (k + u)/K + b`, always below the upper end.

    Args:
        x_levels: Levels 0 .. levels - 1, of an integer type. Shape: (n, C, H, W), or any other.
        levels: How many there are, K.
        generator: Source of u.
        scale: "unit" or "symmetric".
        dtype: Of the result.

    Returns:
        The dequantised data, of the same shape.

    Raises:
        ValueError: for data that are not integer levels, or an unknown scale.

    Example:
        >>> k = torch.tensor([0, 8, 16], dtype=torch.uint8)
        >>> x = dequantise(k, 17, torch.Generator().manual_seed(0))
        >>> bool((17 * x >= k).all() and (17 * x < k + 1).all())
        True
    """
    width, left = affine(scale)
    check_count("levels", levels)
    if x_levels.is_floating_point() or x_levels.is_complex() or x_levels.dtype == torch.bool:
        raise ValueError(f"dequantise takes whole levels 0..{levels - 1}, got {x_levels.dtype}: pass uint8 images")
    least, most = map(int, x_levels.aminmax()) if x_levels.numel() else (0, 0)
    if not 0 <= least <= most < levels:
        mend = f"pass images with levels 0..{levels - 1}, or name the right number of levels"
        raise ValueError(f"the levels go from {least} to {most}: {mend}")
    return width * add_noise(x_levels, generator, dtype).div_(levels) + left


def add_noise(x_levels: Tensor, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
    """k + u, kept below k + 1: in single precision 255 + u would round to 256 once in 130,000 draws."""
    k = x_levels.to(dtype)
    u = torch.rand(k.shape, generator=generator, dtype=dtype, device=k.device)
    return torch.minimum(k + u, torch.nextafter(k + 1, k))


def quantise(x: Tensor, levels: int, *, scale: str = "unit") -> Tensor:
    """The level in whose cell each value lies, or the nearest level for values outside. Any shape, uint8.

    Raises:
        ValueError: for more levels than uint8 holds, or a value that is not a number: a NaN would become black.

    Example:
        >>> quantise(torch.tensor([-.2, 0., .5, .999, 1.7]), 17).tolist()
        [0, 0, 8, 16, 16]
    """
    width, left = affine(scale)
    if not 1 < levels <= 256:
        raise ValueError(f"quantise gives uint8 images, of 2 to 256 levels, got levels={levels}")
    if bad := int(x.isnan().sum()):
        raise ValueError(f"{bad} of {x.numel()} values are NaN, which have no level: look at what made them")
    return ((floating(x) - left) * (levels / width)).floor().clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim(log_prob, shape: Sequence[int], levels: int, scale: str | float | Tensor = "unit"):
    r"""Bits per dimension of dequantised data, :math:`-\log p/(D \ln 2) + \log_2 K - \overline{\log_2 w}`.

    Shifting the data (centring) does not change volumes, so only the width of the scaling matters. With 256 levels the
    offset is 8 for data in [0, 1) and 7 in [-1, 1).

    Args:
        log_prob: Log density in nats of the scaled, dequantised data: a float, or a tensor of any shape.
        shape: Of one image, such as (3, 32, 32); its product is D.
        levels: Number of levels, K.
        scale: "unit", "symmetric", or the width w onto which the affine map stretches [0, 1): a number, or a
            tensor of one width per dimension, which broadcasts to ``shape``.

    Returns:
        Bits per dimension, like ``log_prob``.

    Raises:
        ValueError: for fewer than two levels, an empty shape, or a width that is not positive.

    Example:
        >>> bits_per_dim(0., (1, 8, 8), 17) == math.log2(17)         # the uniform density on the unit cube
        True
        >>> bits_per_dim(-3072 * math.log(2), (3, 32, 32), 256, "symmetric")
        8.0
    """
    dims = math.prod(shape)
    if levels < 2 or dims < 1:
        raise ValueError(f"bits per dimension need levels >= 2 and a shape, got {levels} levels and shape {shape}")
    width = torch.as_tensor(affine(scale)[0] if isinstance(scale, str) else scale, dtype=torch.float64)
    if not bool((width > 0).all() and width.isfinite().all()):
        raise ValueError("the scale of bits_per_dim must be a positive width: give the factor of the affine map")
    offset = math.log2(levels) - float(width.log2().broadcast_to(tuple(shape)).mean())
    return -log_prob / (dims * math.log(2)) + offset
