r"""A continuous normalising flow trained by maximum likelihood, the baseline of the book's comparison of costs.

Points move along :math:`dx/dt = v_\theta(x, t)` from the data at 0 to N(0, I) at T. The loss is the mean over points of

.. math:: -\log N(x_T; 0, I) - \int_0^T \mathrm{tr}\frac{\partial v_\theta}{\partial x}\,dt

(Chen et al., 2018, Eq. 8; Grathwohl et al., 2019, Eq. 4). Every update solves the whole equation, where score matching
needs the field at one time only. Solver and gradients are torchdiffeq's: backpropagation through the solver's steps,
which keeps all of them in memory ("backprop"), or the adjoint equation solved backwards, which keeps one ("adjoint").
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from psmlib.bank.mlp_bank import Bank
from psmlib.likelihood import rademacher
from psmlib.machine.checks import check_choice, check_count
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import OTFlow, Process, as_time
from psmlib.training.batches import draw_points
from psmlib.training.guarded import Progress, guarded
from psmlib.training.optim import Adam

METHODS = {"euler": "euler", "heun": "heun2", "rk4": "rk4"}
"""torchdiffeq's names. Its "rk4" is the 3/8 rule, of the same order and cost as the classical one of the samplers."""
DIVERGENCES = ("exact", "hutchinson")
GRADIENTS = {"backprop": odeint, "adjoint": odeint_adjoint}
Velocity = Callable[[Tensor, float], Tensor]
"""A function of points (n, *shape) and a time, with values like the points."""


def differentiable(bank: Bank, process: Process, k: int = 0) -> tuple[Velocity, Tensor]:
    """Network k of a bank as a function of x and t that gradients pass through, and its parameters.

    The parameters share the bank's memory: what trains them trains the bank, which itself stays free of gradients.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> predict, params = differentiable(Bank(Plain(), 2), OTFlow(), 1)
        >>> torch.autograd.grad(predict(torch.zeros(3, 2), .5).sum(), params)[0].shape
        torch.Size([1, 30952])
    """
    twin = bank.copy(params=bank.params[k : k + 1])
    twin.params = bank.params[k : k + 1].detach().requires_grad_()
    piece = twin.score(Partition([0, process.T]), process).on_block(process.T)
    return lambda x, t: piece.differentiable(x, as_time(t, x)), twin.params


class CNF:
    """A flow: a velocity, its parameters and how it is solved.

    Args:
        velocity: v(x, t), differentiable in x and in the parameters. Shape: (n, *shape) -> (n, *shape).
        params: Tensors that require gradients; training changes them in place.
        steps: Equal solver steps from 0 to T.
        method: "euler", "heun" or "rk4".
        divergence: "exact" (a backward pass per axis) or "hutchinson" (one, along a random probe that stays the
            same for a whole solve).
        gradient: "backprop" (through the solver's steps) or "adjoint" (another solve, backwards in time).
        T: Time of the normal end.

    Raises:
        ValueError: for an unknown name, or steps that are no positive whole number.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> flow = CNF.of_bank(Bank(Plain(), 1, native="velocity"), steps=4)
        >>> flow.log_prob(torch.zeros(3, 2)).shape, flow.sample(5, (2,), torch.Generator().manual_seed(0)).shape
        (torch.Size([3]), torch.Size([5, 2]))
    """

    def __init__(
        self, velocity: Velocity, params: Sequence[Tensor], *, steps: int = 20,
        method: str = "rk4", divergence: str = "exact", gradient: str = "backprop", T: float = 1.0,
    ):  # fmt: skip
        check_choice("method", method, METHODS)
        check_choice("divergence", divergence, DIVERGENCES)
        check_choice("gradient", gradient, GRADIENTS)
        check_count("steps", steps)
        self.velocity, self.params = velocity, list(params)
        self.steps, self.method, self.divergence, self.gradient, self.T = steps, method, divergence, gradient, T
        self.evaluations = 0
        """Calls of the velocity so far."""

    @classmethod
    def of_bank(cls, bank: Bank, **settings) -> CNF:
        """The flow whose velocity is the one network of a bank; they share memory, so training it trains the bank.

        ``bank.score(SA, OTFlow())`` then is the same field as a Score, and every sampler and likelihood of the book
        takes it.

        Args:
            bank: One network with native "velocity".
            **settings: As of :class:`CNF`.

        Raises:
            ValueError: when the bank holds several networks, or predicts something else.
        """
        if len(bank) != 1 or bank.native != "velocity":
            got = f"got {len(bank)} that predict {bank.native!r}"
            raise ValueError(f'a flow is one network that predicts a velocity, {got}: use Bank(..., native="velocity")')
        predict, params = differentiable(bank, OTFlow())
        return cls(predict, [params], **settings)

    def _field(self, x: Tensor, t: float, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """The velocity and the trace of its Jacobian; both can be differentiated where gradients are enabled."""
        self.evaluations += 1
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if graph and x.requires_grad else x.detach().requires_grad_()
            v = self.velocity(x, t)
            pull = partial(torch.autograd.grad, inputs=x, create_graph=graph, materialize_grads=True)
            if probe is not None:
                trace = (pull(v, grad_outputs=probe)[0] * probe).flatten(1).sum(1)
            else:
                trace, flat = x.new_zeros(len(x)), v.flatten(1)
                for j in range(flat.shape[1]):
                    (back,) = pull(flat[:, j].sum(), retain_graph=graph or j + 1 < flat.shape[1])
                    trace = trace + back.flatten(1)[:, j]
        return (v, trace) if graph else (v.detach(), trace.detach())

    def _solver(self, backwards: bool = False) -> dict:
        """Times, method and steps as torchdiffeq takes them."""
        times = torch.tensor([self.T, 0.0] if backwards else [0.0, self.T], dtype=torch.float64)
        times = times.to(self.params[0].device)
        grid = lambda f, y, t: torch.linspace(*t.tolist(), self.steps + 1, dtype=t.dtype, device=t.device)  # noqa: E731
        return {"t": times, "method": METHODS[self.method], "options": {"grid_constructor": grid}}

    def _log_prob(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log density of points, with a gradient in the parameters where gradients are enabled."""
        dtype = self.params[0].dtype
        if x.dim() < 2 or x.dtype != dtype:
            raise ValueError(f"this flow takes {dtype} points of shape (n, *shape), got {x.dtype} of {tuple(x.shape)}")
        probe = None if self.divergence == "exact" else rademacher(x, generator or stream(0))
        solve, options = GRADIENTS[self.gradient], self._solver()
        if self.gradient == "adjoint":
            options["adjoint_params"] = self.params
        field = lambda t, state: self._field(state[0], float(t.detach()), probe)  # noqa: E731
        ends, changes = solve(field, (x, x.new_zeros(len(x))), **options)
        return self.log_normal(ends[-1]) + changes[-1]

    @staticmethod
    def log_normal(x: Tensor) -> Tensor:
        """Log density of the normal end, N(0, I), in nats. Shape: (n, *shape) -> (n,)."""
        return OTFlow().prior_log_prob(x)

    @torch.enable_grad()
    def loss_and_gradient(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[float, list[Tensor]]:
        """Mean negative log likelihood of points, in nats, and its gradient in each parameter.

        The gradient by "backprop" is that of the solver's own answer, by "adjoint" that of the exact solution up to
        the solver's error (Chen et al., 2018, Eqs. 3 to 5).

        Args:
            x: Points. Shape: (n, *shape).
            generator: Source of the Hutchinson probe; a fixed one by default.
        """
        loss = -self._log_prob(x, generator).mean()
        return float(loss.detach()), list(torch.autograd.grad(loss, self.params, materialize_grads=True))

    @torch.no_grad()
    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log density of points, in nats. Shape: (n, *shape) -> (n,)."""
        return self._log_prob(x, generator)

    @torch.no_grad()
    def carry(self, x: Tensor, *, backwards: bool = False) -> Tensor:
        """Points carried from the data to the normal end, or backwards. Shape: (n, *shape)."""

        def field(t: Tensor, y: Tensor) -> Tensor:
            self.evaluations += 1
            return self.velocity(y, float(t))

        return odeint(field, x, **self._solver(backwards))[-1]

    def sample(self, n: int, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draws from the flow. Shape: (n, *shape)."""
        like = self.params[0]
        noise = torch.randn(n, *shape, generator=generator, dtype=like.dtype, device=generator and generator.device)
        return self.carry(noise.to(like.device), backwards=True)


def adam_steps(params: Sequence[Tensor], lr: float) -> Callable[[Sequence[Tensor]], None]:
    """A function that takes gradients, whose memory it uses up, and changes the parameters by one step of Adam."""
    moments, count = [Adam(p.detach()) for p in params], itertools.count(1)

    def step(slopes: Sequence[Tensor]) -> None:
        i = next(count)
        for moment, param, slope in zip(moments, params, slopes, strict=True):
            moment.step(param.detach(), slope, lr=lr, count=i)

    return step


def train_cnf(
    flow: CNF, data, *, updates: int, batch_size: int = 512, lr: float = 1e-3, seed: int = 0, every: int = 10
) -> Iterator[Progress]:
    """Trains a flow in place by Adam on the mean negative log likelihood.

    Args:
        flow: The flow.
        data: A density with ``sample(n, generator)`` (fresh draws each update), or a tensor of points (N, *shape).
        updates: Adam steps.
        batch_size: Points an update.
        lr: Learning rate.
        seed: Update i draws from the stream (seed, i).
        every: Updates between two reports.

    Yields:
        A :class:`~psmlib.training.guarded.Progress` every so often, and at the end; the loss, in nats, is the mean
        since the last one. Shape: (1,).

    Raises:
        ValueError: for numbers that are not positive.
        FloatingPointError: when the loss or a parameter is not finite; the flow keeps its last finite state.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> flow = CNF.of_bank(Bank(Plain(), 1, native="velocity"), steps=2)
        >>> for progress in train_cnf(flow, HG(), updates=3, batch_size=16):
        ...     pass
        >>> progress.update, flow.evaluations              # 2 steps of RK4, three times
        (3, 24)
    """
    for name, value in (("updates", updates), ("batch_size", batch_size), ("every", every)):
        check_count(name, value)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
    params, adam = [p.detach() for p in flow.params], adam_steps(flow.params, lr)

    def step(done: int, n: int) -> Tensor:
        total = 0.0
        for i in range(done, done + n):
            generator = stream(seed, i)
            loss, slopes = flow.loss_and_gradient(draw_points(data, batch_size, generator).to(params[0]), generator)
            adam(slopes)
            total += loss
        sound = all(bool(p.isfinite().all()) for p in params)
        return torch.tensor([total / n if sound else torch.nan], dtype=torch.float64)

    def blame(k: int, loss: float, done: int, end: int) -> str:
        return (
            f"the loss is {loss:g} between updates {done} and {end}: lower lr ({lr:g}) or take more steps than "
            f"{flow.steps}; the flow was put back to update {done}"
        )

    yield from guarded(step, params, updates=updates, blame=blame, chunk=every)
