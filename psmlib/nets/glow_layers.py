r"""Invertible layers of Glow: actnorm, 1x1 convolution, affine coupling and split (Kingma and Dhariwal, 2018, Table 1).

Each layer has ``forward(x) -> (y, log_det)`` with :math:`\log|\det\partial y/\partial x|` of every image, shape
(n,), and ``inverse(y) -> x``. Layers with data-dependent initial parameters have ``initialise(x) -> y``, which sets
them from a batch and returns the outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SCALE = 2.0  # bound of the log scales of couplings and splits, so that they can be inverted in float32


def convolution(channels: int, out: int, size: int, generator: torch.Generator, *, zero: bool = False) -> nn.Conv2d:
    """A padded convolution in float64, initialised with torch's default distribution from ``generator``, or with zeros.

    Args:
        channels: Input channels.
        out: Output channels.
        size: Side of the kernel, odd.
        generator: On the CPU; not used for zeros.
        zero: Whether all parameters are initialised to zero.

    Example:
        >>> bool(convolution(4, 2, 3, torch.Generator(), zero=True).weight.any())
        False
    """
    conv = nn.utils.skip_init(nn.Conv2d, channels, out, size, padding=size // 2, dtype=torch.float64)
    bound = 0.0 if zero else (channels * size**2) ** -0.5
    for tensor in conv.parameters():
        tensor.data.uniform_(-bound, bound, generator=generator) if bound else tensor.data.zero_()
    return conv


def bounded(h: Tensor) -> Tensor:
    """Maps a real number to a log scale between -LOG_SCALE and LOG_SCALE, with slope 1 at 0."""
    return LOG_SCALE * torch.tanh(h / LOG_SCALE)


class ActNorm(nn.Module):
    r"""A scale and a shift for each channel, :math:`y = e^{s}(x + b)`.

    Args:
        channels: Number of channels.

    Example:
        >>> layer, x = ActNorm(2), torch.arange(8, dtype=torch.float64).view(2, 2, 1, 2)
        >>> layer.initialise(x).mean((0, 2, 3)).tolist()
        [0.0, 0.0]
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1, dtype=torch.float64))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Gives every channel mean 0 and variance 1 over the batch; a channel without variance is only shifted."""
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        spread = torch.where(var > 0, var, 1.0).sqrt()
        self.shift.copy_(-mean[:, None, None])
        self.log_scale.copy_(-spread.log()[:, None, None])
        return self(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return self.log_scale.exp() * (x + self.shift), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() - self.shift


class InvertibleConv(nn.Module):
    r"""A 1x1 convolution parametrised as :math:`W = P L (U + \mathrm{diag}(\pm e^{s}))` (Glow, Eq. 10-11).

    The permutation P and the signs are fixed; L is unit lower and U strictly upper triangular. The log determinant is
    H W times the sum of s. The initial W is a random rotation. One matrix of parameters stores L below its diagonal, U
    above it and s on it.

    Args:
        channels: Number of channels.
        generator: Source of the rotation; on the CPU.

    Example:
        >>> W = InvertibleConv(4, torch.Generator().manual_seed(0)).matrix()
        >>> torch.allclose(W @ W.T, torch.eye(4, dtype=torch.float64))
        True
    """

    def __init__(self, channels: int, generator: torch.Generator):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64, generator=generator))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())
        self.triangles = nn.Parameter(lower.tril(-1) + upper.triu(1) + torch.diag(diagonal.abs().log()))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U with their diagonals."""
        both = self.triangles
        eye = torch.eye(len(both), dtype=both.dtype, device=both.device)
        return both.tril(-1) + eye, both.triu(1) + torch.diag(self.sign * both.diagonal().exp())

    def matrix(self) -> Tensor:
        """W. Shape: (C, C)."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.triangles.trace() * (x.shape[2] * x.shape[3])
        return F.conv2d(x, self.matrix()[:, :, None, None]), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        return F.conv2d(y, torch.linalg.solve_triangular(upper, half, upper=True)[:, :, None, None])


class Coupling(nn.Module):
    r"""An affine coupling: one half of the channels scales and shifts the other, :math:`y_a = e^{s(x_b)}x_a + t(x_b)`.

    s and t are computed by three convolutions (3x3, 1x1, 3x3) with ReLU; the last is initialised to zero, so that the
    layer is initially the identity.

    Args:
        channels: Number of channels, at least two.
        hidden: Channels between the convolutions.
        generator: Source of the initial parameters; on the CPU.

    Example:
        >>> layer, x = Coupling(4, 8, torch.Generator()), torch.ones(2, 4, 2, 2, dtype=torch.float64)
        >>> bool((layer(x)[0] == x).all())
        True
    """

    def __init__(self, channels: int, hidden: int, generator: torch.Generator):
        super().__init__()
        self.moved = channels // 2
        self.first = convolution(channels - self.moved, hidden, 3, generator)
        self.middle = convolution(hidden, hidden, 1, generator)
        self.last = convolution(hidden, 2 * self.moved, 3, generator, zero=True)

    def _scale_and_shift(self, x_b: Tensor) -> tuple[Tensor, Tensor]:
        h, shift = self.last(F.relu(self.middle(F.relu(self.first(x_b))))).chunk(2, 1)
        return bounded(h), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x_a, x_b = x[:, : self.moved], x[:, self.moved :]
        log_scale, shift = self._scale_and_shift(x_b)
        return torch.cat([log_scale.exp() * x_a + shift, x_b], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        y_a, y_b = y[:, : self.moved], y[:, self.moved :]
        log_scale, shift = self._scale_and_shift(y_b)
        return torch.cat([(y_a - shift) * (-log_scale).exp(), y_b], 1)


class Step(nn.Module):
    """A step of the flow: actnorm, 1x1 convolution, coupling (Glow, Figure 2a).

    Args:
        channels: Number of channels, at least two.
        hidden: Hidden channels of the coupling.
        generator: Source of the initial parameters; on the CPU.

    Example:
        >>> step, x = Step(2, 4, torch.Generator()), torch.ones(3, 2, 1, 1, dtype=torch.float64)
        >>> torch.allclose(step.inverse(step(x)[0]), x)
        True
    """

    def __init__(self, channels: int, hidden: int, generator: torch.Generator):
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix = InvertibleConv(channels, generator)
        self.couple = Coupling(channels, hidden, generator)

    def initialise(self, x: Tensor) -> Tensor:
        return self.couple(self.mix(self.norm.initialise(x))[0])[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, first = self.norm(x)
        x, second = self.mix(x)
        x, third = self.couple(x)
        return x, first + second + third

    def inverse(self, y: Tensor) -> Tensor:
        return self.norm.inverse(self.mix.inverse(self.couple.inverse(y)))


class Split(nn.Module):
    r"""Splits off half of the channels as latents, Gaussian with mean and scale computed from the other half.

    The latents are standardised, :math:`z = (x_b - m(x_a))e^{-s(x_a)}`, so that all latents of the flow are standard
    normal; m and s are computed by one 3x3 convolution initialised to zero.

    Args:
        channels: Number of channels, even.

    Example:
        >>> kept, latent, log_det = Split(4)(torch.ones(2, 4, 2, 2, dtype=torch.float64))
        >>> kept.shape, latent.shape, log_det.shape
        (torch.Size([2, 2, 2, 2]), torch.Size([2, 2, 2, 2]), torch.Size([2]))
    """

    def __init__(self, channels: int):
        super().__init__()
        self.prior = convolution(channels // 2, channels, 3, torch.Generator(), zero=True)

    def _mean_and_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        mean, h = self.prior(kept).chunk(2, 1)
        return mean, bounded(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The remaining channels, the latents, and the log determinant."""
        kept, left = x.chunk(2, 1)
        mean, log_scale = self._mean_and_scale(kept)
        return kept, (left - mean) * (-log_scale).exp(), (-log_scale).flatten(1).sum(1)

    def inverse(self, kept: Tensor, latent: Tensor) -> Tensor:
        mean, log_scale = self._mean_and_scale(kept)
        return torch.cat([kept, latent * log_scale.exp() + mean], 1)
