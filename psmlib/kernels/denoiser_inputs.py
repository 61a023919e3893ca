"""What the optimal denoiser is given: checked, flattened and in one dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Points, data and coefficients.

    Attributes:
        x: Points. Shape: (B, d).
        data: Data, as they were given. Shape: (N, *shape).
        alpha: Factor of the data. Shape: (B,).
        sigma: Standard deviation of the noise. Shape: (B,).
        width: 2 sigma^2, in float64 because it underflows long before sigma does. Shape: (B,).
        log_sigma: Shape: (B,).
    """

    x: Tensor
    data: Tensor
    alpha: Tensor
    sigma: Tensor
    width: Tensor
    log_sigma: Tensor


def _coefficient(value: float | Tensor, name: str, x: Tensor) -> Tensor:
    """A coefficient of every point, (B,), in float64 on the CPU."""
    value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if value.dim() and value.shape != (len(x),):
        raise ValueError(f"{name} must be a number or have shape ({len(x)},), got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite: clean it first")
    return value.expand(len(x))


def _check_alike(name: str, value: Tensor, shape: tuple, data: Tensor) -> None:
    """Refuses a tensor that cannot be compared with the data; None in ``shape`` stands for any number."""
    if value.dim() != len(shape) or any(a not in (None, b) for a, b in zip(shape, value.shape, strict=True)):
        wanted = str(tuple("B" if a is None else a for a in shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
    if value.dtype != data.dtype:
        raise ValueError(f"{name} has dtype {value.dtype} but data have {data.dtype}: convert one of them")
    if value.device != data.device:
        raise ValueError(f"{name} is on {value.device} but data are on {data.device}: move one of them")


def check_shapes(x: Tensor, data: Tensor, tangent: Tensor | None = None) -> None:
    """Refuses what cannot be compared.

    Raises:
        ValueError: for other dtypes than float32 and float64, or shapes, dtypes or devices that do not agree.
    """
    if data.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"data have dtype {data.dtype}: scale them and convert with data.float() or data.double()")
    if not data.numel() or not data.dim():
        raise ValueError(f"data of shape {tuple(data.shape)} are empty: give at least one point of one number")
    _check_alike("x", x, (None, *data.shape[1:]), data)
    if tangent is not None:
        _check_alike("tangent", tangent, tuple(x.shape), data)


def read(x: Tensor, data: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Inputs:
    """Checks and flattens.

    Args:
        x: Points. Shape: (B, *shape).
        data: Data points. Shape: (N, *shape).
        alpha: Factor of the data. Shape: () or (B,).
        sigma: Standard deviation of the noise. Shape: () or (B,).

    Raises:
        ValueError: when something is wrong with them.

    Example:
        >>> read(torch.zeros(2, 1, 3), torch.zeros(5, 1, 3), 1., torch.tensor([1., 2.])).width
        tensor([2., 8.], dtype=torch.float64)
    """
    check_shapes(x, data)
    factor, noise = _coefficient(alpha, "alpha", x), _coefficient(sigma, "sigma", x)
    if not bool((noise.to(x.dtype) > 0).all()):
        raise ValueError(
            f"sigma must be positive in {x.dtype}, got {float(noise.min()):g}: without noise there is none to be read "
            f"off x, take a small positive sigma, such as {torch.finfo(x.dtype).tiny ** 0.5:.0e}, for the limit"
        )
    like = {"dtype": x.dtype, "device": x.device}
    flat = x.reshape(len(x), data.shape[1:].numel())
    return Inputs(flat, data, factor.to(**like), noise.to(**like), 2 * noise.square(), noise.log())
