"""Training and likelihoods of the book's small network as JAX programs, compiled whole, on one core.

An optional contestant, present where JAX is: ``pip install -e ".[bench]"``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from psmlib.data.toys import Mixture
from psmlib.kernels.bank_mlp import layers

os.environ.setdefault("NPROC", "1")  # threads of XLA, which are counted when it starts
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
try:
    import jax
    import jax.numpy as jnp
    from jax import lax
except ImportError:
    jax = None

ROWS = 500
"""Points whose likelihoods are solved together, about as many as the cache holds the activations of."""


def _stack(flat: Tensor, widths: Sequence[int]) -> list:
    """Weights and biases of one network."""
    return [(jnp.array(weight.numpy()), jnp.array(bias[0].numpy())) for weight, bias in layers(flat, widths)]


def _network(stack: list, h):
    for weight, bias in stack[:-1]:
        h = jax.nn.elu(h @ weight + bias)
    return h @ stack[-1][0] + stack[-1][1]


def training(toy: Mixture, flat: Tensor, widths: Sequence[int], batch: int, lr: float) -> Callable[[int], float]:
    """A function that does so many updates and returns their mean loss: draws, gradient and Adam in one compiled scan.

    Args:
        toy: The data.
        flat: Initial parameters of a network of [x, t, t] that predicts noise, VP with b(t) = 10t. Shape: (P,).
        widths: Its layer widths.
        batch: Points of a batch.
        lr: Learning rate.
    """
    cdf, centres, factors = (jnp.array(v.float().numpy()) for v in (toy.weights.cumsum(0), toy.centres, toy._factors))

    def loss(stack, key):
        picks, normals, places, times, noise = jax.random.split(key, 5)
        k = jnp.searchsorted(cdf, jax.random.uniform(picks, (batch,))).clip(max=len(cdf) - 1)
        normal = jax.random.normal(normals, (batch, 2))
        z = jnp.where(k[:, None] < len(toy.gauss_weight), normal, jax.random.uniform(places, (batch, 2), minval=-1))
        x0 = centres[k] + (factors[k] * z[:, None]).sum(2)
        t, eps = 1 - jax.random.uniform(times, (batch, 1)), jax.random.normal(noise, (batch, 2))
        x = jnp.exp(-2.5 * t**2) * x0 + jnp.sqrt(-jnp.expm1(-5 * t**2)) * eps
        return jnp.square(_network(stack, jnp.concatenate([x, t, t], 1)) - eps).mean()

    def update(state, i):
        stack, mean, square = state
        value, grad = jax.value_and_grad(loss)(stack, jax.random.fold_in(jax.random.key(0), i))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, grad)
        step, scale = lr / (1 - 0.9 ** (i + 1.0)), 1 / (1 - 0.999 ** (i + 1.0))
        moved = jax.tree.map(lambda p, m, v: p - step * m / (jnp.sqrt(v * scale) + 1e-8), stack, mean, square)
        return (moved, mean, square), value

    run = jax.jit(lambda state, counts: lax.scan(update, state, counts))
    stack = _stack(flat, widths)
    zeros = jax.tree.map(jnp.zeros_like, stack)
    held = {"state": (stack, zeros, zeros), "done": 0}

    def updates(n: int) -> float:
        held["state"], losses = run(held["state"], held["done"] + jnp.arange(n))
        held["done"] += n
        return float(losses.mean())

    return updates


def likelihood(flat: Tensor, widths: Sequence[int], state: tuple[Tensor, Tensor], times: Tensor) -> tuple:
    """Points and divergence integrated along a grid, as :func:`psmlib.benchmarks.likelihood.by_psmlib`, by classic RK4.

    The trace takes the directions through one linearisation of the network; points go :data:`ROWS` at a time.
    """
    x, change = (part.numpy() for part in state)
    size = ROWS if len(x) % ROWS == 0 else len(x)
    grid = jnp.array(times.float().numpy())
    moved, more = _solve(_stack(flat, widths), x.reshape(-1, size, 2), grid)
    return torch.tensor(np.array(moved).reshape(x.shape)), torch.tensor(change + np.array(more).ravel())


def _field(stack: list, x, t):
    """Velocity and its divergence for VP with b(t) = 10t."""
    times = jnp.broadcast_to(t, (len(x), 2))
    eps, slope = jax.linearize(lambda y: _network(stack, jnp.concatenate([y, times], 1)), x)
    trace = sum(slope(jnp.zeros_like(x).at[:, j].set(1))[:, j] for j in range(2))
    sigma = jnp.sqrt(-jnp.expm1(-5 * t**2))
    return -5 * t * (x - eps / sigma), -5 * t * (2 - trace / sigma)


def _along(stack: list, x, times):
    """RK4 for some points."""

    def step(state, ends):
        (y, a), (t, s) = state, ends
        h, k, slopes = s - t, 0.0, []
        for part in (0.0, 0.5, 0.5, 1.0):
            slopes.append(_field(stack, y + part * h * k, t + part * h))
            k = slopes[-1][0]
        y, a = (v + h / 6 * (p + 2 * q + 2 * r + u) for v, p, q, r, u in zip((y, a), *slopes, strict=True))
        return (y, a), None

    return lax.scan(step, (x, jnp.zeros(len(x))), (times[:-1], times[1:]))[0]


_solve = jax and jax.jit(lambda stack, x, times: lax.map(lambda part: _along(stack, part, times), x))
