"""Grids of time: their spacing, their ends, and the borders that they must hit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib.partition import Partition
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP
from psmlib.sampling.grids import log_snr, quadratic, uniform, with_borders

F64 = torch.float64
PROCESSES = [VP(0.0, 10.0), VP(0.1, 20.0), SubVP(), VE(), RVE(), OTFlow(), EDM()]


@pytest.mark.parametrize(
    "make", [uniform, quadratic, lambda *a: quadratic(*a, power=3.0), lambda *a: quadratic(*a, power=7)]
)
@pytest.mark.parametrize("t0, t1", [(0.0, 1.0), (1e-4, 0.7), (0.002, 80.0)])
def test_ends_are_exact_and_times_ascend(make, t0, t1):
    for steps in (1, 2, 37):
        grid = make(t0, t1, steps)
        assert grid.dtype == F64 and grid.shape == (steps + 1,)
        assert float(grid[0]) == t0 and float(grid[-1]) == t1
        assert (grid.diff() > 0).all()


def test_spacing():
    torch.testing.assert_close(uniform(0.2, 1.0, 5), torch.tensor([0.2, 0.36, 0.52, 0.68, 0.84, 1.0], dtype=F64))
    for power in (2.0, 3.0, 7.0):
        steps = (quadratic(0.01, 0.9, 40, power) ** (1 / power)).diff()
        torch.testing.assert_close(steps, steps.mean().expand(40), rtol=1e-10, atol=0)
    torch.testing.assert_close(quadratic(0.0, 1.0, 10), (torch.arange(11, dtype=F64) / 10) ** 2)


@pytest.mark.parametrize("p", PROCESSES, ids=repr)
@pytest.mark.parametrize("steps", [1, 10, 200])
def test_log_snr_falls_in_equal_steps(p, steps):
    t0 = 1e-5 if isinstance(p, RVE) else 1e-3 * p.T
    grid = log_snr(p, t0, p.T, steps)
    assert float(grid[0]) == t0 and float(grid[-1]) == p.T and (grid.diff() > 0).all()
    # flow matching ends without signal: its last step is infinitely long on this scale, whatever one does
    lam = p.log_snr(grid[:-1] if isinstance(p, OTFlow) else grid)
    wanted = torch.linspace(float(lam[0]), float(lam[-1]), len(lam), dtype=F64)
    torch.testing.assert_close(lam, wanted, rtol=0, atol=1e-8 * float((lam[0] - lam[-1]).abs()) + 1e-9)
    assert len(grid) == steps + 1


def test_log_snr_of_flow_matching_reaches_the_end():
    lam = OTFlow().log_snr(log_snr(OTFlow(), 0.01, 1.0, 20))
    want = 2 * math.log(1e-6)  # the scale stops a millionth short of the end
    step = (want - float(lam[0])) / 20
    assert float(lam[-2]) == pytest.approx(want - step, abs=1e-4)


def test_log_snr_against_the_inverse_of_sigma():
    ve = VE(0.01, 50.0)  # alpha = 1: equal steps in log sigma
    grid = log_snr(ve, 0.05, 0.9, 12)
    sigma = torch.exp(torch.linspace(math.log(ve.sigma(0.05)), math.log(ve.sigma(0.9)), 13, dtype=F64))
    torch.testing.assert_close(grid, ve.time_of_sigma(sigma), rtol=1e-9, atol=0)


def test_log_snr_needs_a_start():
    with pytest.raises(ValueError, match="log_snr grids need t0 > 0") as caught:
        log_snr(VP(), 0.0, 1.0, 10)
    assert "\n" not in str(caught.value)


blocks = st.lists(st.floats(1e-4, 0.9999), max_size=25, unique=True).map(lambda e: Partition([0.0, *sorted(e), 1.0]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    partition=blocks,
    steps=st.integers(1, 30),
    t0=st.floats(0, 0.5),
    power=st.sampled_from([1.0, 3.0]),
    flip=st.booleans(),
)
def test_with_borders_keeps_the_ends_and_hits_every_border(partition, steps, t0, power, flip):
    times = quadratic(t0, 1.0, steps, power)
    times = times.flip(0) if flip else times
    grid = with_borders(times, partition)
    inner = [e for e in partition.edges if t0 < e < 1]
    assert grid[0] == times[0] and grid[-1] == times[-1]
    assert set(inner) <= set(grid.tolist())
    step = grid.diff() * (-1 if flip else 1)
    assert (step > 0).all()
    assert steps <= len(grid) - 1 <= steps + len(inner)
    # no point is lost: each is still there, or has moved to a border nearer than one step
    for t in times.tolist():
        assert t in grid or min(abs(t - e) for e in inner) <= float(times.diff().abs().max())


def test_with_borders_by_hand():
    grid = with_borders(uniform(0.0, 1.0, 4), Partition([0, 0.2, 0.55, 1]))
    assert grid.tolist() == [0, 0.2, 0.55, 0.75, 1]
    both = with_borders(uniform(0.0, 1.0, 2), Partition([0, 0.45, 0.52, 1]))
    assert both.tolist() == [0, 0.45, 0.52, 1]
    on_it = with_borders(uniform(0.0, 1.0, 4), Partition([0, 0.25, 0.5, 1]))
    assert on_it.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # a border next to an end is added, and the end stays
    assert with_borders(uniform(0.0, 1.0, 2), Partition([0, 0.01, 0.99, 1])).tolist() == [0, 0.01, 0.5, 0.99, 1]


def test_the_ends_of_an_adaptive_solve_stay():
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    for edges in ([0, 0.13, 0.57, 1], [0, 0.6, 0.7, 1], [0, 0.1, 0.2, 0.3, 1], [0, 0.8, 0.9, 1]):
        assert with_borders(ends, Partition(edges)).tolist() == edges
        assert with_borders(ends.flip(0), Partition(edges)).tolist() == edges[::-1]


def test_without_borders_nothing_moves():
    times = uniform(0.1, 1.0, 7)
    assert with_borders(times, None) is times
    assert torch.equal(with_borders(times, Partition([0, 1])), times)
    assert torch.equal(with_borders(times, Partition([0, 0.05, 1])), times)  # the border lies outside
