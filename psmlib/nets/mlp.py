r"""Small multilayer perceptrons of a point and a time: their input features and skip connections.

A network computes ``skip(t) x + mlp(features(x, t))``. :class:`Plain` is the network of Parallel Score Matching
(Appendix H: 4-100-150-100-2, the time is two of the inputs). :class:`Conditioned` has as many parameters but better
inputs: sines of x at octave frequencies, damped according to the noise level, the time as log SNR, t and sigma; and a
skip connection that is exact for standard Gaussian data.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import parameter_count
from psmlib.process import Process, as_time


def _column(value: Tensor, x: Tensor) -> Tensor:
    """A function of time as a column of shape (n, 1)."""
    return value.to(x.dtype).reshape(-1, 1).expand(x.shape[0], 1)


@dataclass(frozen=True)
class Plain:
    """Features [x, t, t]: the input of the paper's network; ``times=0`` makes a network without time (DPSM).

    Args:
        dim: Dimension of x.
        hidden: Widths of the hidden layers.
        times: How many times t is appended to x.

    Example:
        >>> Plain().parameters
        30952
    """

    dim: int = 2
    hidden: tuple[int, ...] = (100, 150, 100)
    times: int = 2

    shared_tangents: ClassVar[bool] = True
    """Whether the features' derivatives are the same at every point."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Layer widths, input first."""
        return (self.dim + self.times, *self.hidden, self.dim)

    @property
    def parameters(self) -> int:
        """Parameters of one network."""
        return parameter_count(self.widths)

    def features(self, x: Tensor, t: float | Tensor, process: Process) -> Tensor:
        """Shape: (n, d), () or (n,) -> (n, F)."""
        if not self.times:
            return x
        return torch.cat([x, _column(as_time(t, x), x).expand(-1, self.times)], 1)

    def tangent(self, x: Tensor, t: float | Tensor, process: Process, u: Tensor) -> Tensor:
        """Derivative of the features along ``u``. Shape: (n, F)."""
        return torch.cat([u, u.new_zeros(len(u), self.times)], 1)

    def skip(self, t: float | Tensor, process: Process, native: str) -> Tensor | None:
        """The factor of x in the output, or None."""
        return None


@dataclass(frozen=True)
class Conditioned(Plain):
    r"""Damped octave Fourier features, log-SNR time, Gaussian skip.

    .. math:: e^{-\omega_k^2\sigma(t)^2/2}\,(\sin\omega_k x_j, \cos\omega_k x_j),\quad \omega_k = \omega_0 2^k,

    which are the means of :math:`\sin\omega_k(x_j + \sigma\varepsilon)` and of the cosine over Gaussian noise. Each
    ingredient can be turned off for ablations.

    Args:
        octaves: Number of frequencies per axis; 0 for none.
        omega0: The lowest frequency, in radians per unit of x.
        damped: Whether the sines are damped.
        log_time: Whether -log SNR, t and sigma are inputs (else t twice, as in :class:`Plain`).
        use_skip: Whether the prediction for standard Gaussian data is added to the output.

    Example:
        >>> Conditioned().parameters <= Plain().parameters
        True
    """

    hidden: tuple[int, ...] = (96, 136, 96)
    octaves: int = 8
    omega0: float = 1.0
    damped: bool = True
    log_time: bool = True
    use_skip: bool = True

    shared_tangents: ClassVar[bool] = False

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.dim + (3 if self.log_time else 2) + 2 * self.octaves * self.dim, *self.hidden, self.dim)

    def _waves(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor, Tensor]:
        """Frequencies (m,), damping (n or 1, m) and phases (n, d, m)."""
        omega = self.omega0 * 2.0 ** torch.arange(self.octaves, dtype=x.dtype, device=x.device)
        sigma = process.sigma(t).to(x.dtype).reshape(-1, 1)
        damp = torch.exp(-0.5 * (omega * sigma) ** 2) if self.damped else torch.ones_like(omega * sigma)
        return omega, damp, x[..., None] * omega

    def features(self, x, t, process):
        t = as_time(t, x)
        # a tenth of log SNR is of order one; the clamp only matters at t = 0
        times = [-0.1 * process.log_snr(t).clamp(-40, 40), t, process.sigma(t)] if self.log_time else [t, t]
        parts = [x, *(_column(value, x) for value in times)]
        if self.octaves:
            _, damp, phase = self._waves(x, t, process)
            damp = damp[:, None, :]
            parts += [(phase.sin() * damp).flatten(1), (phase.cos() * damp).flatten(1)]
        return torch.cat(parts, 1)

    def tangent(self, x, t, process, u):
        t = as_time(t, x)
        parts = [u, u.new_zeros(len(u), 3 if self.log_time else 2)]
        if self.octaves:
            omega, damp, phase = self._waves(x, t, process)
            rate = damp[:, None, :] * omega * u[..., None]
            parts += [(phase.cos() * rate).flatten(1), (-phase.sin() * rate).flatten(1)]
        return torch.cat(parts, 1)

    def skip(self, t, process, native):
        if not self.use_skip:
            return None
        t = as_time(t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        p, q = process._parts(t, native)
        return (p * alpha + q * sigma) / (alpha**2 + sigma**2)


ARCHITECTURES = {"Plain": Plain, "Conditioned": Conditioned}  # by name, for reading a bank from its file
