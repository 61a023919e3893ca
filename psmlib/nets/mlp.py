r"""Small networks of a point and a time: what they are told, and how their output is read.

A network computes ``skip(t) x + mlp(features(x, t))``. :class:`Plain` is the network of Parallel Score Matching
(Appendix H: 4-100-150-100-2, the time fed twice). :class:`Conditioned` has as many parameters, but is told
better: sines of x at octave frequencies, damped as the noise blurs them, the time as log SNR, t and sigma, and
the answer for Gaussian data as a skip.
"""

from __future__ import annotations

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
        dim: Axes of x.
        hidden: Hidden widths.
        times: How often t is appended.

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

    which is :math:`E[\sin \omega_k x_0]`-like: the damping is what Gaussian noise does to a sine. Switches turn each
    ingredient off for the ablation.

    Args:
        octaves: Number of frequencies per axis; 0 for none.
        omega0: The lowest frequency, radians per unit of x.
        damped: Whether the noise damps the sines.
        log_time: Whether -log SNR and sigma are fed beside t (else t twice, as in :class:`Plain`).
        use_skip: Whether the Gaussian answer is added to the output.

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
        parts = [x]
        if self.log_time:
            # a tenth of log SNR is of order one; the clamp only matters at t = 0 exactly
            parts += [_column(-0.1 * process.log_snr(t).clamp(-40, 40), x), _column(t, x), _column(process.sigma(t), x)]
        else:
            parts += [_column(t, x)] * 2
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


ARCHITECTURES = {"Plain": Plain, "Conditioned": Conditioned}
"""By name, for reading a bank back from its file."""
