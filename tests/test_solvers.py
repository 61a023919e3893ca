"""Runge-Kutta methods: their orders, the integrated scalar, and error control."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from psmlib import solvers
from psmlib.solvers import DOPRI5, METHODS, TABLEAUS, Tableau, adaptive, fixed

F64 = torch.float64
C = torch.tensor([[1.0], [1.5], [3.0]], dtype=F64)


def solution(t):
    """x' = -2 t x^2 with x(0) = 1 / c, and the integral of x from 0: neither linear nor autonomous."""
    return 1 / (C + t**2), (torch.atan(t / C.sqrt()) / C.sqrt())[:, 0]


def field(x, t):
    return -2 * t * x**2, x[:, 0]


def fields(_):
    return field


def last(steps):
    for item in steps:
        step = item
    return step


def order_of(method, counts):
    """Slopes of log error against log step, of the points and of the accumulator, at the worst time of the way."""
    errors = []
    for n in counts:
        worst = [0.0, 0.0]
        for x, a, t in fixed(fields, 1 / C, torch.linspace(0, 2, n + 1, dtype=F64), method):
            wanted = solution(torch.tensor(t, dtype=F64))
            worst = [max(w, float((g - v).abs().max())) for w, g, v in zip(worst, (x, a), wanted, strict=True)]
        errors.append(worst)
        assert t == 2
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("method", TABLEAUS)
def test_empirical_order(method):
    for slope in order_of(method, [40, 80, 160]):
        assert abs(slope - TABLEAUS[method].order) < 0.25


def test_dormand_prince_has_order_five(monkeypatch):
    monkeypatch.setitem(TABLEAUS, "dopri5", DOPRI5)
    for slope in order_of("dopri5", [60, 120, 240]):
        assert abs(slope - 5) < 0.25
    # the embedded weights are of order four: were they of order five, the error estimate would vanish too fast
    monkeypatch.setitem(TABLEAUS, "dopri5", Tableau(4, DOPRI5.c, DOPRI5.a, solvers._DOPRI5_B4))
    for slope in order_of("dopri5", [60, 120, 240]):
        assert abs(slope - 4) < 0.25


@pytest.mark.parametrize("table", [*TABLEAUS.values(), DOPRI5], ids=[*TABLEAUS, "dopri5"])
def test_tableaus_are_consistent(table):
    assert len(table.c) == len(table.a) == len(table.b)
    for i, (c, row) in enumerate(zip(table.c, table.a, strict=True)):
        assert len(row) == i and sum(row) == pytest.approx(c, abs=1e-14)
    for k in range(table.order):  # quadrature conditions
        assert sum(b * c**k for b, c in zip(table.b, table.c, strict=True)) == pytest.approx(1 / (k + 1), abs=1e-14)


def test_one_step_of_each_method_by_hand():
    x, t, h = 1 / C, 0.3, 0.2

    def v(y, s):
        return -2 * s * y**2

    k1 = v(x, t)
    heun = x + h / 2 * (k1 + v(x + h * k1, t + h))
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    want = {"euler": x + h * k1, "heun": heun, "rk4": x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)}
    for method, y in want.items():
        torch.testing.assert_close(last(fixed(fields, x, [t, t + h], method))[0], y, rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", TABLEAUS)
def test_there_and_back(method):
    times = torch.linspace(0, 2, 401, dtype=F64)
    x, a, _ = last(fixed(fields, 1 / C, times, method))
    y, b, t = last(fixed(fields, x, times.flip(0), method))
    tolerance = {"euler": 0.03, "heun": 1e-4, "rk4": 1e-9}[method]
    assert t == 0
    torch.testing.assert_close(y, 1 / C, rtol=0, atol=tolerance)
    torch.testing.assert_close(a + b, torch.zeros(3, dtype=F64), rtol=0, atol=tolerance)


def test_fixed_yields_each_point_of_the_grid_and_asks_at_the_middle_of_steps():
    asked = []

    def note(t):
        asked.append(t)
        return field

    times = [1.0, 0.7, 0.65, 0.0]
    got = [t for _, _, t in fixed(note, 1 / C, torch.tensor(times, dtype=F64), "heun")]
    assert got == times[1:]
    assert asked == pytest.approx([0.85, 0.675, 0.325])


def test_fixed_leaves_its_start_alone():
    x = 1 / C
    last(fixed(fields, x, [0.0, 1.0], "rk4"))
    assert torch.equal(x, 1 / C)


def test_a_scalar_accumulator_is_allowed():
    x, a, _ = last(fixed(lambda _: lambda y, t: (y, 2.0), 1 / C, [0.0, 0.25, 1.0], "rk4"))
    assert a == pytest.approx(2.0)


def count_calls():
    calls = [0]

    def counted(x, t):
        calls[0] += 1
        return field(x, t)

    return calls, lambda _: counted


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["ascending", "descending"])
def test_adaptive_finds_the_exact_solution(ends):
    calls, counted = count_calls()
    start, end = (solution(torch.tensor(t, dtype=F64)) for t in ends)
    x, a, t, nfe = last(adaptive(counted, start[0], ends, rtol=1e-9, atol=1e-9))
    assert t == ends[1] and nfe == calls[0]
    torch.testing.assert_close(x, end[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(a, end[1] - start[1], rtol=0, atol=1e-7)


def test_adaptive_agrees_with_scipy():
    # Lotka and Volterra's equations, one period and a half
    def predator(x, t):
        u, v = x[:, 0], x[:, 1]
        return torch.stack([u * (1 - v), v * (u - 1)], 1), u

    x0 = torch.tensor([[2.0, 0.5], [0.3, 1.5]], dtype=F64)
    x, _, _, nfe = last(adaptive(lambda _: predator, x0, [0.0, 10.0], rtol=1e-9, atol=1e-9))
    spent = 0
    for row, got in zip(x0, x, strict=True):
        ref = solve_ivp(
            lambda t, y: [y[0] * (1 - y[1]), y[1] * (y[0] - 1)], (0, 10), row.numpy(), "RK45", rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(got.numpy(), ref.y[:, -1], rtol=0, atol=2e-6)
        tight = solve_ivp(
            lambda t, y: [y[0] * (1 - y[1]), y[1] * (y[0] - 1)], (0, 10), row.numpy(), "DOP853", rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(got.numpy(), tight.y[:, -1], rtol=0, atol=2e-6)
        spent = max(spent, ref.nfev)
    # the same pair and the same controller; scipy saves one of seven stages by reusing the last
    assert 0.5 < nfe / (spent * 7 / 6) < 1.5


def test_tighter_tolerances_cost_more_and_err_less():
    errors, costs = [], []
    for tol in (1e-3, 1e-5, 1e-7, 1e-9):
        x, _, _, nfe = last(adaptive(fields, 1 / C, [0.0, 2.0], rtol=tol, atol=tol))
        errors.append(float((x - solution(torch.tensor(2.0, dtype=F64))[0]).abs().max()))
        costs.append(nfe)
    assert all(a > 5 * b for a, b in zip(errors, errors[1:], strict=False))
    assert costs == sorted(set(costs))
    assert all(e < 10 * tol for e, tol in zip(errors, (1e-3, 1e-5, 1e-7, 1e-9), strict=True))


def test_adaptive_stops_at_every_time_with_the_field_of_that_piece():
    # the field jumps at 1: dx/dt = x before, -x after
    asked = []

    def pieces(t):
        asked.append(t)
        return lambda x, s: ((1.0 if t < 1 else -1.0) * x, 1.0)

    x0 = torch.ones(2, 1, dtype=F64)
    states = list(adaptive(pieces, x0, [0.0, 1.0, 3.0], rtol=1e-10, atol=1e-12))
    assert [s[2] for s in states] == [1.0, 3.0] and asked == [0.5, 2.0]
    torch.testing.assert_close(states[0][0], math.e * x0, rtol=1e-8, atol=0)
    torch.testing.assert_close(states[1][0], math.exp(-1) * x0, rtol=1e-8, atol=0)
    assert states[1][1] == pytest.approx(3.0) and states[0][3] < states[1][3]


def test_adaptive_survives_a_step_into_nothing():
    # sqrt(x) has no value below zero, where a first step of 1 / 100 of the way would land
    def root(x, t):
        return -10 * x / x.clamp_max(1.0).sqrt(), x[:, 0]

    x0 = torch.full((1, 1), 1e-3, dtype=F64)
    t1 = 0.9 * 2 * math.sqrt(1e-3) / 10  # x = (sqrt(x0) - 5 t)^2
    x, *_ = last(adaptive(lambda _: root, x0, [0.0, t1], rtol=1e-10, atol=1e-14))
    assert float(x) == pytest.approx(1e-5, rel=1e-5)


def test_running_out_of_evaluations_names_the_time():
    with pytest.raises(RuntimeError, match=r"stopped at t = 0\.\d+ after \d+ evaluations.*max_nfe \(70\)") as caught:
        last(adaptive(fields, 1 / C, [0.0, 2.0], rtol=1e-12, atol=1e-12, max_nfe=70))
    assert "\n" not in str(caught.value)
    calls, counted = count_calls()
    with pytest.raises(RuntimeError):
        last(adaptive(counted, 1 / C, [0.0, 2.0], rtol=1e-12, atol=1e-12, max_nfe=70))
    assert calls[0] <= 70


def test_a_field_that_is_not_a_number_ends_in_an_error():
    with pytest.raises(FloatingPointError, match="the field is not finite at point 0 of 3, at t = 0: drop the point"):
        last(adaptive(lambda _: lambda x, t: (x * math.nan, x[:, 0]), 1 / C, [0.0, 1.0], max_nfe=700))


def test_an_unknown_method_is_named():
    assert METHODS == ("euler", "heun", "rk4", "adaptive")
    with pytest.raises(ValueError, match="'rk5'.*euler, heun, rk4, adaptive") as caught:
        last(fixed(fields, 1 / C, [0.0, 1.0], "rk5"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["heun", "adaptive"])
def test_single_precision_stays_single(method):
    steps = (
        adaptive(fields, (1 / C).float(), [0.0, 1.0])
        if method == "adaptive"
        else fixed(fields, (1 / C).float(), [0.0, 1.0], method)
    )
    x, a, *_ = last(steps)
    assert x.dtype == a.dtype == torch.float32
