"""Interpolation between the networks of discrete score matching, against the networks and an exact score."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from psmlib.bank.block_score import BlockScore
from psmlib.bank.image_bank import ImageBank
from psmlib.bank.interpolated import Interpolated
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import Mixture
from psmlib.likelihood import log_likelihood, time_grid
from psmlib.nets.mlp import Plain
from psmlib.nets.ronneberger import Ronneberger
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.sampling import last, ode
from psmlib.sampling.grids import quadratic, uniform

F64 = torch.float64
P = VP(0.0, 10.0)
POINTS = (0.1, 0.3, 1.0)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def ends(kind: str, native: str = "eps") -> BlockScore:
    if kind == "plane":
        bank = Bank(Plain(hidden=(8,), times=0), 3, native=native, dtype=F64)
    else:
        bank = ImageBank(Ronneberger(2, 2, 1, dtype=F64), 3, native=native)
    return bank.score(Partition.points(POINTS), P)


def points(kind: str, n: int, seed: int = 0) -> Tensor:
    shape = (2,) if kind == "plane" else (1, 2, 2)
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def neighbours(t: float) -> dict[int, float]:
    """Which networks answer at a time, and their weights, by hand."""
    if t <= 0.1:
        return {0: 1.0}
    return {0: (0.3 - t) / 0.2, 1: (t - 0.1) / 0.2} if t <= 0.3 else {1: (1 - t) / 0.7, 2: (t - 0.3) / 0.7}


TIMES = [0.0, 0.04, 0.1, 0.1001, 0.2, 0.3, 0.65, 0.999, 1.0]
each_kind = pytest.mark.parametrize("kind", ["plane", "images"])


def close(a: Tensor, b: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def readings(score, x: Tensor, t: float | Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Everything that the networks say: values, slopes, Jacobians, forms and traces."""
    return (
        score.predict(x, t), *score.predict_jvp(x, t, u), *score.predict_jacobian(x, t),
        *score.predict_quadratic(x, t, u), *score.predict_trace(x, t),
    )  # fmt: skip


@each_kind
def test_all_that_the_networks_say_is_mixed(kind):
    score, x, u = ends(kind), points(kind, 3), points(kind, 3, 1)
    alone = [readings(score.on_block(t), x, t, u) for t in POINTS]
    for t in TIMES:
        wanted = [sum(w * alone[k][i] for k, w in neighbours(t).items()) for i in range(len(alone[0]))]
        for found, right in zip(readings(Interpolated(score), x, t, u), wanted, strict=True):
            close(found, right)


@each_kind
def test_at_the_points_between_them_and_below_the_first(kind):
    score, x = ends(kind), points(kind, 3)
    mixed = Interpolated(score)
    value = [score.predict(x, t) for t in POINTS]
    for t, found in zip(POINTS, value, strict=True):
        assert torch.equal(mixed.predict(x, t), found), "the network itself"
    close(mixed.predict(x, 0.2), (value[0] + value[1]) / 2)
    close(mixed.predict(x, 0.65), (value[1] + value[2]) / 2)
    assert torch.equal(mixed.predict(x, 0.0), value[0]) and torch.equal(mixed.predict(x, 0.07), value[0])
    for t, side in itertools.product(POINTS[:2], (-1, 1)):
        close(mixed.predict(x, t + side * 1e-9), mixed.predict(x, t), atol=1e-6)
        assert side == -1 or not torch.allclose(score.predict(x, t + 1e-9), score.predict(x, t), atol=1e-2)


@each_kind
@pytest.mark.parametrize("native", ["eps", "velocity"])
def test_the_coefficients_are_those_of_the_time_itself(kind, native):
    """Unlike the networks' own, which are frozen with them."""
    score, x, u, t = ends(kind, native), points(kind, 3), points(kind, 3, 1), 0.2
    mixed, D = Interpolated(score), x[0].numel()
    value, jac = mixed.predict(x, t), mixed.predict_jacobian(x, t)[1]
    f, c = float(P.drift(t)), float(P.diffusion2(t) / (2 * P.sigma(t)))
    a, b = (f, c) if native == "eps" else (0.0, 1.0)
    velocity, slope, v = a * x + b * value, a * torch.eye(D, dtype=F64) + b * jac, u.flatten(1)
    close(mixed.velocity(x, t), velocity)
    for found, form in (
        (mixed.velocity_and_divergence(x, t), slope.diagonal(dim1=1, dim2=2).sum(1)),
        (mixed.velocity_and_quadratic(x, t, u), torch.einsum("na,nab,nb->n", v, slope, v)),
    ):
        close(found[0], velocity)
        close(found[1], form)
    if native == "eps":
        close(mixed.score(x, t), -value / P.sigma(t))


@each_kind
def test_a_time_each(kind):
    mixed, t = Interpolated(ends(kind)), torch.tensor([*TIMES, 0.2, 0.65], dtype=F64)
    x, u = points(kind, len(t)), points(kind, len(t), 1)
    together = readings(mixed, x, t, u)
    singly = [readings(mixed, x[i : i + 1], float(s), u[i : i + 1]) for i, s in enumerate(t)]
    for i, found in enumerate(together):
        close(found, torch.cat([part[i] for part in singly]))
    velocity = [mixed.velocity(x[i : i + 1], float(s)) for i, s in enumerate(t) if s]
    close(mixed.velocity(x[1:], t[1:]), torch.cat(velocity))
    for none in (0.2, t[:0]):
        for found, part in zip(readings(mixed, x[:0], none, u[:0]), together, strict=True):
            assert found.shape == (0, *part.shape[1:])


@each_kind
def test_derivatives_of_the_score(kind):
    """A fresh bank each time: within a transformation of torch.func an image network could not be made."""
    h, t = 1e-5, torch.tensor([0.2, 0.05, 0.3, 0.9], dtype=F64)
    mixed, x, u = Interpolated(ends(kind)), points(kind, 4), points(kind, 4, 1)
    change = (mixed.divergence(x + h * u, t) - mixed.divergence(x - h * u, t)) / (2 * h)
    gradient = Interpolated(ends(kind)).trace_gradient(x, t)
    torch.testing.assert_close((gradient * u).flatten(1).sum(1), change, rtol=1e-4, atol=1e-5)
    for s in (0.05, 0.2, 0.9):
        rate = (mixed.score(x, s + h) - mixed.score(x, s - h)) / (2 * h)
        torch.testing.assert_close(Interpolated(ends(kind)).time_derivative(x, s), rate, rtol=1e-4, atol=1e-5)
    rows = [mixed.time_derivative(x[i : i + 1], float(s)) for i, s in enumerate(t)]
    close(mixed.time_derivative(x, t), torch.cat(rows))
    with pytest.raises(ValueError, match="differentiated at one time: call it once for each"):
        mixed.differentiable(x, t)


def test_a_single_point_is_constant_in_time():
    score = ImageBank(Ronneberger(2, 2, 1, dtype=F64), 1).score(Partition.points(1), P)
    mixed, x = Interpolated(score), points("images", 2)
    for t in (0.0, 0.4, 1.0):
        assert torch.equal(mixed.predict(x, t), score.predict(x, 1.0))
        close(mixed.trace_gradient(x, max(t, 0.1)) * P.sigma(max(t, 0.1)), score.trace_gradient(x, 1.0) * P.sigma(1.0))


def test_only_points_can_be_interpolated():
    score = Bank(Plain(hidden=(8,)), 2).score(Partition([0, 0.5, 1]), P)
    with pytest.raises(ValueError, match="only networks of time points can be interpolated, not those of") as error:
        Interpolated(score)
    assert "\n" not in str(error.value) and ". " not in str(error.value)
    with pytest.raises(ValueError, match="time 1.5 lies outside"):
        Interpolated(ends("plane")).predict(points("plane", 1), 1.5)


# Exact networks ---------------------------------------------------------------------------------------------

TOY = Mixture(gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]]), (1, [-0.7, -0.9], 0.05)])


class Perfect:
    """A bank that was trained without any error: network k knows the law at the time of point k."""

    native, device, params = "eps", torch.device("cpu"), torch.empty(0, dtype=F64)

    def __init__(self, size: int):
        self.size = self.whole = size

    def __len__(self) -> int:
        return self.size


class PerfectScore(BlockScore):
    """The Score of such a bank."""

    def __init__(self, partition: Partition):
        super().__init__(Perfect(len(partition)), partition, P)
        self.exact = TOY.diffused(P)

    def predict(self, x, t):
        return self._each_block(lambda k, y, s: (self.exact.eps(y, self._time(s, k)),), x, t)[0]

    def predict_jvp(self, x, t, u):
        raise AssertionError("the Jacobian is cheaper")

    def predict_jacobian(self, x, t):
        return self._each_block(lambda k, y, s: self.exact.jacobian(y, self._time(s, k), "eps"), x, t)


def dense(n: int) -> PerfectScore:
    return PerfectScore(Partition.points(quadratic(0.0, 1.0, n).tolist()[1:]))


def test_likelihoods_of_perfect_networks_converge_to_the_exact_one():
    """With the square of the points' distance; those of the piecewise constant field with the distance alone."""
    x, t0, exact = TOY.sample(8, torch.Generator().manual_seed(0)), 0.03, TOY.diffused(P)
    # one prior for all, so that nothing but the field differs
    wanted = log_likelihood(exact, P, x, t0=t0, steps=100, grid="warped").log_prob
    gaps = {}
    for n in (16, 32, 64):
        for name, score in (("mixed", Interpolated(dense(n))), ("frozen", dense(n))):
            found = log_likelihood(score, P, x, t0=t0, steps=100, grid="warped", method="heun")
            gaps[name, n] = float((found.log_prob - wanted).square().mean().sqrt())
    orders = {name: math.log2(gaps[name, 16] / gaps[name, 64]) / 2 for name in ("mixed", "frozen")}
    assert abs(orders["mixed"] - 2) < 0.3 and abs(orders["frozen"] - 1) < 0.3, (orders, gaps)
    assert gaps["mixed", 64] < 5e-4 and all(20 * gaps["mixed", n] < gaps["frozen", n] for n in (16, 32, 64)), gaps


def test_solvers_step_from_point_to_point():
    """The field bends at the points, so they are on the grid; samples of perfect networks follow the exact flow."""
    mixed = Interpolated(dense(40))
    times = time_grid(mixed, P, 0.05, 1.0, 60, "uniform")
    assert {t for t in mixed.partition.times if t > 0.05} <= set(times.tolist())
    noise = points("plane", 5)
    sampled, right = (
        last(ode(score, P, noise, uniform(0.05, 1.0, 80).flip(0), method="heun")).x
        for score in (mixed, TOY.diffused(P))
    )
    torch.testing.assert_close(sampled, right, rtol=0, atol=0.02)
