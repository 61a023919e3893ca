r"""Auxiliary models: models of the distribution of x_T for a diffusion that stops early.

A short diffusion leaves x_T far from the noise :math:`p_{noise}` that sampling starts from. If a model
:math:`\nu_\phi` replaces the noise, the bound on the likelihood becomes (How Much Is Enough?, Section 3.1)

.. math:: L^\phi(s, T) = E\log p_{data} - G(s, T) - \mathrm{KL}[p(x, T)\,\|\,\nu_\phi],

so nu is fitted by maximum likelihood, either to data diffused to T or, for densities by the probability-flow equation,
to where that equation with the learned score takes the data (Section 3.3). It is used in a likelihood as
``log_likelihood(..., t1=nu.T, prior=nu)`` and in sampling by starting at T from ``nu.sample``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from psmlib.bank import checkpoint
from psmlib.data.toys import Mixture
from psmlib.diffusion_time import dirichlet_mixture
from psmlib.diffusion_time.dirichlet_mixture import GaussianMixture
from psmlib.diffusion_time.noised_data import check_time, diffused_data, standard_normal
from psmlib.machine.files import reading
from psmlib.nets.glow import Glow
from psmlib.process import Process, Shortened

_VALUES = 1 << 18  # pixels at a time when a Glow is evaluated; its layers hold a hundred times as many numbers


class Auxiliary:
    """A model of the distribution of x_T; made by this module's functions and by ``fit_glow.fit_glow``.

    Attributes:
        law: A :class:`~psmlib.diffusion_time.dirichlet_mixture.GaussianMixture`, a
            :class:`~psmlib.nets.glow.Glow`, or a closed form.
        process: Whose x_T it models.
        T: At which time.
        shape: Of a point.
        name: Its name in tables.
        about: How it was fitted.

    Example:
        >>> from psmlib.process import VP
        >>> nu = gaussian(VP(), 1., (2,))
        >>> nu.sample(3, torch.Generator().manual_seed(0)).shape, nu.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(self, law, process: Process, T: float, shape: Sequence[int], name: str, about: dict | None = None):
        check_time(process, T)
        self.law, self.process, self.T, self.shape = law, process, float(T), tuple(shape)
        self.name, self.about = name, about or {}

    def __repr__(self) -> str:
        return f"Auxiliary({self.name} at T = {self.T:g} of {self.process!r})"

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        return self.law.parameter_count if isinstance(self.law, Glow) else self.law.parameters

    @property
    def active(self) -> int | None:
        """Number of components of a mixture with a weight above a thousandth; None for other models."""
        return self.law.active if isinstance(self.law, GaussianMixture) else None

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, in nats, in the dtype and on the device of the points.

        Args:
            x: Points. Shape: (n, *shape).

        Returns:
            Shape: (n,).

        Raises:
            ValueError: for points of another shape, or that are not floating-point numbers.
        """
        if tuple(x.shape[1:]) != self.shape or x.dim() < 2:
            raise ValueError(f"{self!r} is of points of shape {self.shape}, got a batch of shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{self!r} takes points of a floating-point dtype, got {x.dtype}: diffuse the data first")
        if isinstance(self.law, Glow):
            # copies of the parameters in the dtype of x, whatever dtype it was trained in
            held = {name: tensor.detach().to(x) for name, tensor in self.law.state_dict().items()}
            rows = max(1, _VALUES // math.prod(self.shape))
            return torch.cat([torch.func.functional_call(self.law, held, (y,)) for y in x.split(rows)])
        return self.law.log_prob(x.flatten(1))

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *,
        dtype: torch.dtype = torch.float64, device: str | torch.device | None = None,
    ) -> Tensor:  # fmt: skip
        """Draws samples of x_T.

        Args:
            n: How many.
            generator: Source of randomness.
            dtype: Of the points; ``**score.tensor_options`` gives the dtype and device of a Score.
            device: Of the points; by default that of the generator.

        Returns:
            Shape: (n, *shape).
        """
        return self.law.sample(n, generator).reshape(n, *self.shape).to(device=device, dtype=dtype)

    def check(self, process: Process, T: float) -> None:
        """Checks that this models x_T of that process at that time; a process stopped at T counts as the same.

        Raises:
            ValueError: when it does not, naming both.
        """
        _check_same(self.name, repr(_uncut(self.process)), self.T, process, T)

    def save(self, path: str | Path) -> None:
        """Writes a fitted model to a safetensors file.

        Raises:
            ValueError: for a distribution in closed form, which has no fitted parameters.
        """
        if isinstance(self.law, GaussianMixture):
            tensors = {name: getattr(self.law, name) for name in ("weights", "means", "covariances")}
            kind = {"kind": "mixture", "covariance": self.law.covariance}
        elif isinstance(self.law, Glow):
            tensors, kind = self.law.state_dict(), {"kind": "glow", "settings": self.law.settings}
        else:
            raise ValueError(f"{self!r} is a closed form, of which there is nothing to save: make it again")
        where = {"process": repr(_uncut(self.process)), "T": self.T, "shape": self.shape, "name": self.name}
        checkpoint.save(path, tensors, {**kind, **where, "about": self.about})


def load(path: str | Path, process: Process, T: float) -> Auxiliary:
    """Reads what :meth:`Auxiliary.save` wrote.

    Args:
        path: The file.
        process: Whose x_T it must model.
        T: At which time.

    Raises:
        ValueError: when the file is missing or broken, holds no auxiliary model, or one of another T or process.

    Example:
        >>> import tempfile
        >>> from psmlib.process import VP
        >>> nu = fit_mixture(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), VP(), .5, components=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nu.save(f"{folder}/nu.safetensors")
        ...     load(f"{folder}/nu.safetensors", VP(), .5)
        Auxiliary(mixture at T = 0.5 of VP(beta_min=0.1, beta_max=20.0))
    """
    tensors, found = checkpoint.load(path)
    if found.get("kind") not in ("mixture", "glow"):
        raise ValueError(f"{path} does not hold an auxiliary model: write it with Auxiliary.save")
    with reading(path, "fit it anew"):
        name, its_process, its_T, shape = found["name"], str(found["process"]), float(found["T"]), found["shape"]
        if found["kind"] == "mixture":
            law = GaussianMixture(**tensors, covariance=found["covariance"])
            held, sound = vars(law), law.means.shape[1] == math.prod(shape)
        else:
            law = Glow(shape, **found["settings"], dtype=tensors["top.shift"].dtype)
            law.load_state_dict(tensors)
            held, sound = law.state_dict(), True
        sound = sound and all(held[key].dtype == tensor.dtype for key, tensor in tensors.items())
        if not sound or not isinstance(name, str) or not isinstance(found["about"], dict):
            raise ValueError("its parts do not fit together")
    _check_same(f"{name} in {path}", its_process, its_T, process, T)
    return Auxiliary(law, process, T, shape, name, found["about"])


class _Noise:
    """The prior of a process stopped at T, in d dimensions."""

    parameters = 0

    def __init__(self, process: Process, T: float, d: int):
        self.process, self.d = Shortened(process, T), d
        self.std = self.process.prior_std

    def log_prob(self, x: Tensor) -> Tensor:
        return self.process.prior_log_prob(x)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.std * standard_normal((n, self.d), generator)


class _Diffused:
    """The exact distribution of x_T for a mixture."""

    parameters = 0

    def __init__(self, mixture: Mixture, process: Process, T: float):
        self.mixture, self.process, self.T = mixture, process, T
        self.score = mixture.diffused(process)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.score.log_prob(x, self.T)

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return diffused_data(self.mixture.sample(n, generator), self.process, self.T, generator)


def gaussian(process: Process, T: float, shape: Sequence[int]) -> Auxiliary:
    r"""The prior of the process itself: N(0, I) for VP, :math:`N(0, \sigma^2(T) I)` for VE at this T.

    Raises:
        ValueError: when T lies outside (0, process.T].

    Example:
        >>> from psmlib.process import EDM
        >>> gaussian(EDM(), 2., (1,)).law.std
        2.0
    """
    check_time(process, T)
    return Auxiliary(_Noise(process, T, math.prod(shape)), process, T, shape, "gaussian")


def exact(mixture: Mixture, process: Process, T: float) -> Auxiliary:
    """The exact distribution of x_T of a mixture, with which the bound is tight up to the gap G (Proposition 1).

    Raises:
        ValueError: when T lies outside (0, process.T].

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.process import VP
        >>> exact(HG(), VP(), .4)
        Auxiliary(exact HG at T = 0.4 of VP(beta_min=0.1, beta_max=20.0))
    """
    return Auxiliary(_Diffused(mixture, process, T), process, T, (mixture.dim,), f"exact {mixture.name}")


def fit_mixture(x_T: Tensor, process: Process, T: float, **settings) -> Auxiliary:
    """A Dirichlet-process mixture of Gaussians fitted to points x_T.

    Args:
        x_T: Diffused data, or end points of the probability-flow equation. Shape: (n, *shape).
        process: Under which the points were diffused.
        T: Their time.
        settings: components, covariance, seed and others of :func:`psmlib.diffusion_time.dirichlet_mixture.fit`.

    Raises:
        ValueError: when T lies outside (0, process.T], or the points or settings are invalid.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.diffusion_time.noised_data import diffused_data
        >>> from psmlib.process import VP
        >>> g = torch.Generator().manual_seed(0)
        >>> x_T = diffused_data(HG().sample(500, g), VP(), .4, g)
        >>> fit_mixture(x_T, VP(), .4, components=3, covariance="spherical").parameters
        11
    """
    check_time(process, T)
    if x_T.dim() < 2:
        raise ValueError(f"x_T has shape (n, *shape), got {tuple(x_T.shape)}: give numbers an axis of their own")
    law, about = dirichlet_mixture.fit(x_T.flatten(1), **settings)
    return Auxiliary(law, process, T, x_T.shape[1:], "mixture", about)


def _check_same(name: str, its_process: str, its_T: float, process: Process, T: float) -> None:
    check_time(process, T)
    if its_process != repr(_uncut(process)) or not math.isclose(its_T, T, rel_tol=1e-9):
        raise ValueError(
            f"this {name} models x_T at T = {its_T:g} of {its_process}, not at T = {T:g} of "
            f"{_uncut(process)!r}: fit one there"
        )


def _uncut(process: Process) -> Process:
    """The original of a process that was stopped early; any other process itself."""
    return process.process if isinstance(process, Shortened) else process
