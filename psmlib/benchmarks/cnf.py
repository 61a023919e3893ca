r"""A continuous normalising flow trained by maximum likelihood: the expensive way to the book's generative models.

Points move along :math:`dx/dt = v_\theta(x, t)` from the data at 0 to N(0, I) at T, and the loss is their mean

.. math:: -\log N(x_T; 0, I) - \int_0^T \mathrm{tr}\frac{\partial v_\theta}{\partial x}\,dt

(Chen et al., 2018, Eq. 8; Grathwohl et al., 2019, Eq. 4): an update cannot be had without solving the whole equation,
where score matching looks at one time. The gradient is taken either through the solver's own steps, which holds all
of them in memory ("backprop"), or by solving the adjoint equation backwards, which holds one ("adjoint").
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psmlib.bank.mlp_bank import Bank
from psmlib.likelihood import rademacher
from psmlib.machine.streams import stream
from psmlib.partition import Partition
from psmlib.process import OTFlow, Process, as_time
from psmlib.solvers import TABLEAUS, Field, fixed
from psmlib.training.batches import draw_points
from psmlib.training.optim import Adam

DIVERGENCES = ("exact", "hutchinson")
Velocity = Callable[[Tensor, float], Tensor]
"""A function of points (n, *shape) and a time, with values like the points."""

GRADIENTS = ("backprop", "adjoint")


def differentiable(bank: Bank, process: Process, k: int = 0) -> tuple[Velocity, Tensor]:
    """Network k of a bank as a function of x and t that gradients pass through, and its parameters.

    The parameters share the bank's memory: what trains them trains the bank, which itself stays free of gradients.

    Example:
        >>> from psmlib.nets.mlp import Plain
        >>> predict, params = differentiable(Bank(Plain(), 2), OTFlow(), 1)
        >>> torch.autograd.grad(predict(torch.zeros(3, 2), .5).sum(), params)[0].shape
        torch.Size([1, 30952])
    """
    twin = bank.copy(bank.params[k : k + 1])
    twin.params = bank.params[k : k + 1].detach().requires_grad_()
    piece = twin.score(Partition([0, process.T]), process).on_block(process.T)
    return lambda x, t: piece.differentiable(x, as_time(t, x)), twin.params


class CNF:
    """A flow: a velocity, its parameters and how it is solved.

    Args:
        velocity: v(x, t), differentiable in x and in the parameters. Shape: (n, *shape) -> (n, *shape).
        params: Tensors that require gradients; a training changes them in place.
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
        known = (
            ("method", method, TABLEAUS),
            ("divergence", divergence, DIVERGENCES),
            ("gradient", gradient, GRADIENTS),
        )
        for name, value, names in known:
            if value not in names:
                raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(names)}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive whole number, got {steps!r}")
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
            raise ValueError(
                f"a flow takes one network that predicts a velocity, got {len(bank)} that predict {bank.native!r}: "
                f'make it with Bank(arch, 1, native="velocity")'
            )
        predict, params = differentiable(bank, OTFlow())
        return cls(predict, [params], **settings)

    def _field(self, x: Tensor, t: float, probe: Tensor | None, graph: bool) -> tuple[Tensor, Tensor]:
        """The velocity and the trace of its Jacobian; ``graph`` keeps what their derivatives need."""
        self.evaluations += 1
        with torch.enable_grad():
            x = x if graph and x.requires_grad else x.detach().requires_grad_()
            v = self.velocity(x, t)
            flat, trace = v.flatten(1), x.new_zeros(len(x))
            if probe is not None:
                (back,) = torch.autograd.grad(v, x, probe, create_graph=graph, materialize_grads=True)
                trace = (back * probe).flatten(1).sum(1)
            else:
                for j in range(flat.shape[1]):
                    more = graph or j + 1 < flat.shape[1]
                    (back,) = torch.autograd.grad(
                        flat[:, j].sum(), x, create_graph=graph, retain_graph=more, materialize_grads=True
                    )
                    trace = trace + back.flatten(1)[:, j]
        return (v, trace) if graph else (v.detach(), trace.detach())

    def _probe(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.divergence == "exact":
            return None
        return rademacher(x, generator or stream(0))

    def _times(self, backwards: bool = False) -> Tensor:
        grid = torch.linspace(0, self.T, self.steps + 1, dtype=torch.float64)
        return grid.flip(0) if backwards else grid

    def _solve(self, x: Tensor, probe: Tensor | None, graph: bool) -> tuple[Tensor, Tensor]:
        """Where the points end, and their integrated divergence."""
        return self._end(lambda y, t: self._field(y, t, probe, graph), x, self._times())

    def _end(self, field: Field, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The last state of a solve and what it accumulated; earlier ones are let go."""
        return deque(fixed(lambda middle: field, x, times, self.method), maxlen=1).pop()[:2]

    @staticmethod
    def log_normal(x: Tensor) -> Tensor:
        """Log density of the normal end, N(0, I), in nats. Shape: (n, *shape) -> (n,)."""
        return OTFlow().prior_log_prob(x)

    def _check(self, x: Tensor) -> None:
        dtype = self.params[0].dtype
        if x.dim() < 2 or x.dtype != dtype:
            raise ValueError(f"this flow takes {dtype} points of shape (n, *shape), got {x.dtype} of {tuple(x.shape)}")

    @torch.enable_grad()
    def loss_and_gradient(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[float, list[Tensor]]:
        r"""Mean negative log likelihood of points, in nats, and its gradient in each parameter.

        With "adjoint" the gradient is :math:`\int_0^T \partial H/\partial\theta\,dt` of
        :math:`H = \sum a\cdot v_\theta - \tfrac1n\sum\mathrm{tr}\,\partial v_\theta/\partial x` along
        :math:`\dot a = -\partial H/\partial x`, solved from :math:`a(T) = x_T/n` backwards together with x. It is that
        of the exact solution, up to the solver's error; "backprop" gives that of the solver's own answer.

        Args:
            x: Points. Shape: (n, *shape).
            generator: Source of the Hutchinson probe; a fixed one by default.
        """
        self._check(x)
        probe = self._probe(x, generator)
        end, change = self._solve(x, probe, graph=self.gradient == "backprop")
        loss = -(self.log_normal(end) + change).mean()
        if self.gradient == "backprop":
            slopes = torch.autograd.grad(loss, self.params, materialize_grads=True)
            return float(loss.detach()), list(slopes)

        def backwards(state: Tensor, t: float) -> tuple[Tensor, Tensor]:
            y, a = state[0].detach().requires_grad_(), state[1]
            v, trace = self._field(y, t, probe, graph=True)
            H = (a * v).sum() - trace.sum() / len(y)
            down, *slopes = torch.autograd.grad(H, [y, *self.params], materialize_grads=True)
            return torch.stack([v.detach(), -down]), torch.cat([slope.flatten() for slope in slopes])

        state = torch.stack([end, end / len(end)])
        pieces = (-self._end(backwards, state, self._times(backwards=True))[1]).split([p.numel() for p in self.params])
        return float(loss), [piece.view_as(p) for piece, p in zip(pieces, self.params, strict=True)]

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log density of points, in nats. Shape: (n, *shape) -> (n,)."""
        self._check(x)
        end, change = self._solve(x, self._probe(x, generator), graph=False)
        return self.log_normal(end) + change

    @torch.no_grad()
    def carry(self, x: Tensor, *, backwards: bool = False) -> Tensor:
        """Points carried from the data to the normal end, or backwards. Shape: (n, *shape)."""

        def field(y: Tensor, t: float) -> tuple[Tensor, float]:
            self.evaluations += 1
            return self.velocity(y, t), 0.0

        return self._end(field, x, self._times(backwards))[0]

    def sample(self, n: int, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draws from the flow. Shape: (n, *shape)."""
        noise = torch.randn(
            n, *shape, generator=generator, dtype=self.params[0].dtype, device=generator and generator.device
        )
        return self.carry(noise.to(self.params[0].device), backwards=True)


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        update: Updates done.
        updates: Updates to do.
        loss: Mean loss since the last look, nats.
        seconds: Time spent.
        evaluations: Calls of the velocity.
    """

    update: int
    updates: int
    loss: float
    seconds: float
    evaluations: int


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
        every: Updates between two looks.

    Yields:
        A :class:`Progress` every so often, and at the end.

    Raises:
        ValueError: for numbers that are not positive.
        FloatingPointError: when the loss or its gradient is not finite; the parameters stay as they were before.

    Example:
        >>> from psmlib.data.toys import HG
        >>> from psmlib.nets.mlp import Plain
        >>> flow = CNF.of_bank(Bank(Plain(), 1, native="velocity"), steps=2)
        >>> for progress in train_cnf(flow, HG(), updates=3, batch_size=16):
        ...     pass
        >>> progress.update, progress.evaluations          # 2 steps of RK4, three times
        (3, 24)
    """
    for name, value in (("updates", updates), ("batch_size", batch_size), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
    moments, like = [Adam(p.detach()) for p in flow.params], flow.params[0]
    began, called, total, since = time.perf_counter(), flow.evaluations, 0.0, 0
    for i in range(updates):
        generator = stream(seed, i)
        loss, slopes = flow.loss_and_gradient(draw_points(data, batch_size, generator).to(like), generator)
        if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in slopes):
            raise FloatingPointError(
                f"the loss at update {i} is {loss:g} or its gradient is not finite: lower lr ({lr:g}) or take more "
                f"steps than {flow.steps}"
            )
        for moment, param, slope in zip(moments, flow.params, slopes, strict=True):
            moment.step(param.detach(), slope, lr=lr, count=i + 1)
        total, since = total + loss, since + 1
        if since == every or i + 1 == updates:
            yield Progress(i + 1, updates, total / since, time.perf_counter() - began, flow.evaluations - called)
            total, since = 0.0, 0
