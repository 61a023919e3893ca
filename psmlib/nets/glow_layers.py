r"""Layers of a flow: maps of images that can be inverted exactly and know how they change volume.

Each layer has ``forward(x) -> (y, log_det)`` with :math:`\log|\det\partial y/\partial x|` of every image, shape
(n,), and ``inverse(y) -> x``. They are those of Glow (Kingma and Dhariwal, 2018, Table 1). A layer whose first values
come from data has ``start(x) -> y``, which sets them by a batch and passes it on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SCALE = 2.0
"""No coupling and no prior of a split stretches a value by more than exp(2), so that float32 can invert it."""


def convolution(channels: int, out: int, size: int, generator: torch.Generator, *, zero: bool = False) -> nn.Conv2d:
    """A padded convolution in float64, with torch's own distribution of first values from ``generator``, or zeros.

    Args:
        channels: That come in.
        out: Channels that go out.
        size: Side of the kernel, odd.
        generator: On the CPU; not used for zeros.
        zero: Whether all values start at zero.

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
    """A log scale within plus or minus LOG_SCALE, with slope 1 at 0."""
    return LOG_SCALE * torch.tanh(h / LOG_SCALE)


class ActNorm(nn.Module):
    r"""A scale and a shift for each channel, :math:`y = e^{s}(x + b)`.

    Args:
        channels: How many.

    Example:
        >>> layer, x = ActNorm(2), torch.arange(8, dtype=torch.float64).view(2, 2, 1, 2)
        >>> layer.start(x).mean((0, 2, 3)).tolist()
        [0.0, 0.0]
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1, dtype=torch.float64))

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Gives every channel mean 0 and variance 1 over the batch. A channel without variance is only moved."""
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
    r"""A 1x1 convolution whose matrix is kept as :math:`W = P L (U + \mathrm{diag}(\pm e^{s}))` (Glow, Eq. 10-11).

    P is a permutation and stays as it is, as do the signs; L is unit lower and U strictly upper triangular. The log
    determinant is H W times the sum of s. The first W is a random rotation. L, U and s share one matrix of parameters:
    what is below, above and on its diagonal.

    Args:
        channels: How many.
        generator: Of the rotation; on the CPU.

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
        kept = self.triangles
        eye = torch.eye(len(kept), dtype=kept.dtype, device=kept.device)
        return kept.tril(-1) + eye, kept.triu(1) + torch.diag(self.sign * kept.diagonal().exp())

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

    s and t come from three convolutions (3x3, 1x1, 3x3) with ReLU; the last starts at zero, hence the layer as the
    identity.

    Args:
        channels: Two or more.
        hidden: Channels between the convolutions.
        generator: Of the first values; on the CPU.

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
        channels: Two or more.
        hidden: Of the coupling.
        generator: Of the first values; on the CPU.

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

    def start(self, x: Tensor) -> Tensor:
        return self.couple(self.mix(self.norm.start(x))[0])[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, first = self.norm(x)
        x, second = self.mix(x)
        x, third = self.couple(x)
        return x, first + second + third

    def inverse(self, y: Tensor) -> Tensor:
        return self.norm.inverse(self.mix.inverse(self.couple.inverse(y)))


class Split(nn.Module):
    r"""Half of the channels leave the flow here, under a Gaussian whose mean and scale the other half tells.

    What leaves is whitened, :math:`z = (x_b - m(x_a))e^{-s(x_a)}`, so that every latent of the flow is standard normal;
    m and s come from one 3x3 convolution that starts at zero.

    Args:
        channels: An even number.

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
        """What stays, what leaves, and the log determinant."""
        kept, left = x.chunk(2, 1)
        mean, log_scale = self._mean_and_scale(kept)
        return kept, (left - mean) * (-log_scale).exp(), (-log_scale).flatten(1).sum(1)

    def inverse(self, kept: Tensor, latent: Tensor) -> Tensor:
        mean, log_scale = self._mean_and_scale(kept)
        return torch.cat([kept, latent * log_scale.exp() + mean], 1)
