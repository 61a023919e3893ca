"""Algorithm 1 on similarities with known crossings, and on the digits."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from sklearn.datasets import load_digits

from psmlib.clustering import optimal_denoiser as module
from psmlib.clustering.optimal_denoiser import READINGS, RULES, by_optimal_denoiser, draws
from psmlib.data.toys import HG, Mixture
from psmlib.exact.finite_set import DiffusedData
from psmlib.partition import Partition
from psmlib.process import EDM, VP

F64 = torch.float64
USUAL = VP(0.1, 20.0)
NOBODY = SimpleNamespace(process=USUAL, tensor_options={"dtype": F64, "device": torch.device("cpu")})
POINT = torch.zeros(1, 1, dtype=F64)


@pytest.fixture
def pretend(monkeypatch):
    """Puts a function (t, anchor) -> share in the place of the similarity."""

    def put(share):
        monkeypatch.setattr(
            module, "similarity", lambda score, x0, eps, t, anchor, **_: share(t, anchor).to(F64).expand(len(t))
        )

    return put


def cut(**arguments):
    return by_optimal_denoiser(**{"score": NOBODY, "data": POINT, "samples": 20_000, **arguments})


def shift(samples):
    """Five standard errors of a share of uniform draws, for crossings that lie where a share has a given value."""
    return 5 * 0.5 / math.sqrt(samples)


# similarities whose running means are known


def alike_within(width):
    return lambda t, anchor: (t - anchor).abs() < width


@pytest.mark.parametrize("rule", RULES)
def test_an_interval_ends_where_the_mean_has_fallen_to_the_threshold(pretend, rule):
    # the mean over (0, t] is .2 / t beyond .2, so that it is the threshold at .2 / threshold
    pretend(alike_within(0.2))
    for threshold in (0.9, 0.6):
        t1, t2 = cut(threshold=threshold, rule=rule)
        assert abs(t1 - 0.2 / threshold) < shift(20_000) and abs(t2 - 1 + 0.2 / threshold) < shift(20_000)


@pytest.mark.parametrize("intervals", [2, 3, 4, 5, 6, 7])
def test_what_lies_between_is_cut_by_the_same_rule(pretend, intervals):
    pretend(alike_within(0.1))
    borders, reach = cut(threshold=0.8, intervals=intervals), 0.1 / 0.8
    left, right = intervals // 2, (intervals - 1) // 2
    want = [reach * (k + 1) for k in range(left)] + [1 - reach * (k + 1) for k in reversed(range(right))]
    assert len(borders) == intervals - 1 and len(Partition([0, *borders, 1])) == intervals
    assert max(abs(a - b) for a, b in zip(borders, want, strict=True)) < 3 * shift(20_000)


def test_first_crossing_and_what_is_printed(pretend):
    # alike but on a stretch near either end: the mean falls to .5 and is back at .8 at the far end
    pretend(lambda t, anchor: ((t - anchor).abs() < 0.1) | ((t - anchor).abs() > 0.3))
    t1, t2 = cut(threshold=0.78)
    assert abs(t1 - 0.1 / 0.78) < shift(20_000) and abs(t2 - 1 + 0.1 / 0.78) < shift(20_000)
    with pytest.raises(
        ValueError, match=r"the two ends meet \(t1 = 1 is not before t2 = .*e-05\): take a higher threshold"
    ):
        cut(threshold=0.78, rule="as printed")
    t1, t2 = cut(threshold=0.85, rule="as printed")  # never back at .85
    assert abs(t1 - 0.1 / 0.85) < shift(20_000) and abs(t2 - 1 + 0.1 / 0.85) < shift(20_000)


@pytest.mark.parametrize("intervals", [2, 3, 5])
@pytest.mark.parametrize("rule", RULES)
def test_all_alike_or_nothing_alike(pretend, intervals, rule):
    pretend(lambda t, anchor: torch.ones_like(t))
    with pytest.raises(ValueError, match="alike throughout|the two ends meet"):
        cut(intervals=intervals, rule=rule)
    pretend(lambda t, anchor: torch.zeros_like(t))
    with pytest.raises(ValueError, match="no time is like t = 0: take a lower threshold, a larger eta or more samples"):
        cut(intervals=intervals, rule=rule)


def test_likeness_that_comes_late_or_is_just_enough(pretend):
    pretend(lambda t, anchor: (t - anchor).abs() > 0.1)
    with pytest.raises(ValueError, match="no time is like t = 0"):
        cut(threshold=0.5)
    with pytest.raises(ValueError, match="alike throughout"):  # as printed, the whole mean of .9 is what counts
        cut(threshold=0.5, intervals=2, rule="as printed")
    pretend(lambda t, anchor: torch.full_like(t, 0.5))
    with pytest.raises(ValueError, match="alike throughout"):
        cut(threshold=0.5, intervals=2)


@given(
    seed=st.integers(0, 10_000), threshold=st.floats(0.3, 0.99), width=st.floats(0.02, 0.3), intervals=st.integers(2, 7)
)
@settings(max_examples=40, deadline=None)
def test_borders_ascend_or_there_are_none(seed, threshold, width, intervals):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "similarity", lambda score, x0, eps, t, anchor, **_: ((t - anchor).abs() < width).double()
        )
        try:
            borders = cut(seed=seed, threshold=threshold, intervals=intervals, samples=200)
        except ValueError as error:
            assert "the two ends meet" in str(error) or "no time is like" in str(error) or "throughout" in str(error)
            return
    assert len(Partition([0, *borders, 1])) == intervals


# laws


@pytest.mark.parametrize("p", [USUAL, EDM(3.0)], ids=["VP", "EDM"])
def test_a_gaussian_given_as_a_density(p):
    """The share is an error function, its mean an integral, the border a root."""
    s, eta, threshold, n = 0.5, 0.1, 0.8, 20_000
    toy = Mixture(gaussians=[(1, [0.0, 0.0], s**2)])

    def share(t, anchor):
        def told(u):
            a, b = float(p.alpha(u)), float(p.sigma(u))
            gain = a * s**2 / (a**2 * s**2 + b**2)
            return gain * a, gain * b / s  # factors of x_0 and of s eps in E[x_0 | x_t]

        return math.erf(eta / s / math.dist(told(t), told(anchor)) / math.sqrt(2)) if t != anchor else 1.0

    def excess(t, anchor):
        return quad(share, *sorted((anchor, t)), args=(anchor,))[0] / abs(t - anchor) - threshold

    args = dict(score=toy.diffused(p), data=toy, threshold=threshold, eta=eta, samples=n)
    found = by_optimal_denoiser(**args, reading="denoised")
    for border, anchor in zip(found, (0.0, p.T), strict=True):
        want = brentq(excess, *((1e-3, p.T) if anchor == 0 else (1e-3, p.T - 1e-3)), args=(anchor,))
        inside = n * abs(want - anchor) / p.T
        slope = (threshold - share(want, anchor)) / abs(want - anchor)
        assert abs(border - want) < 4 * math.sqrt(threshold * (1 - threshold) / inside) / slope


def test_only_finite_data_have_a_first_interval():
    # near t = 0 the noise can be told where x_0 is known exactly, which a density leaves open
    toy = HG().centred()
    data = toy.sample(3000, torch.Generator().manual_seed(0))
    exact, many = dict(score=toy.diffused(USUAL), data=toy), dict(score=DiffusedData(data, USUAL), data=data)
    few = dict(score=DiffusedData(data[:10], USUAL), data=data[:10])
    assert by_optimal_denoiser(**few, eta=0.05, samples=4000, intervals=2)[0] > 0.01
    with pytest.raises(ValueError, match="no time is like t = 0"):
        by_optimal_denoiser(**exact, eta=0.05, samples=4000)
    # expected data points agree at 0 with either, and points enough are as good as their density
    one, two = (by_optimal_denoiser(**law, eta=0.2, samples=8000, reading="denoised") for law in (exact, many))
    assert abs(one[0] - two[0]) < 0.03 and abs(one[1] - two[1]) < 0.03


# digits: figures recorded before, by other code, from one seed each


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().data, dtype=F64) / 16


@pytest.mark.parametrize(
    "scale, shifted, recorded, many",
    [
        (1, 0, (0.089, 0.795, 0.440), (0.0955, 0.792, 0.4425)),
        (2, 1, (0.185, 0.872, 0.577), (0.188, 0.8655, 0.5775)),
    ],
)
def test_recorded_on_digits(digits, scale, shifted, recorded, many):
    """3000 samples, threshold .9, eta = 2/256, to within the spread over seeds; ``many`` is from 100,000 samples."""
    score = DiffusedData((scale * digits - shifted).float(), USUAL)
    found = []
    for seed in range(6):
        args = dict(score=score, data=score.data, threshold=0.9, eta=2 / 256, samples=3000, seed=seed)
        (t1, t2), (again, t3) = (by_optimal_denoiser(**args, reading=r) for r in ("paper", "same point"))
        assert t1 == again
        found.append((t1, t2, t3))
    found = torch.tensor(found)
    spread = found.std(0)
    assert bool((spread < 0.012).all())
    assert bool(((found.mean(0) - torch.tensor(many)).abs() < 4 * 0.006 / 6**0.5).all())
    assert bool(((found.mean(0) - torch.tensor(recorded)).abs() < 3 * 0.006 * (1 + 1 / 6) ** 0.5).all())


def test_the_printed_rule_is_a_little_later_and_no_other_on_digits(digits):
    score = DiffusedData(digits.float(), USUAL)
    for seed in range(2):
        args = dict(score=score, data=score.data, eta=2 / 256, samples=2000, seed=seed)
        first, printed = (by_optimal_denoiser(**args, rule=rule) for rule in RULES)
        assert all(abs(a - b) < 0.003 for a, b in zip(first, printed, strict=True))


def test_settings_move_the_borders_as_they_must(digits):
    args = dict(score=DiffusedData(digits.float(), USUAL), data=digits.float(), samples=1000)
    strict, usual, lax = (by_optimal_denoiser(**args, threshold=threshold) for threshold in (0.95, 0.9, 0.8))
    assert strict[0] < usual[0] < lax[0] and lax[1] < usual[1] < strict[1]
    fine, coarse = (by_optimal_denoiser(**args, eta=eta) for eta in (1 / 255, 4 / 255))
    assert fine[0] < usual[0] < coarse[0] and coarse[1] < usual[1] < fine[1]
    few = DiffusedData(digits[:100].float(), USUAL)
    assert (
        by_optimal_denoiser(score=few, data=few.data, samples=1000)[0] > usual[0] + 0.01
    )  # fewer are told apart longer
    for eta, intervals in ((10.0, 3), (10.0, 2)):
        with pytest.raises(ValueError, match="the two ends meet|alike throughout"):
            by_optimal_denoiser(**args, eta=eta, intervals=intervals)
    with pytest.raises(ValueError, match="no time is like t = 0"):
        by_optimal_denoiser(**args, eta=0.0)


def test_seeds_and_more_intervals(digits):
    args = dict(score=DiffusedData(digits.float(), USUAL), data=digits, samples=1000)  # data of another dtype
    for reading in READINGS:
        three = by_optimal_denoiser(**args, reading=reading, seed=3)
        assert three == by_optimal_denoiser(**args, reading=reading, seed=3)
        assert three != by_optimal_denoiser(**args, reading=reading, seed=4)
        assert three[:1] == by_optimal_denoiser(**args, reading=reading, seed=3, intervals=2)
        if reading == "same point":
            with pytest.raises(ValueError, match="two ends of time alone"):
                by_optimal_denoiser(**args, reading=reading, intervals=4)
            continue
        five = by_optimal_denoiser(**args, reading=reading, seed=3, intervals=5)
        assert (five[0], five[-1]) == three and list(five) == sorted(set(five)) and len(five) == 4


# draws and bad input


def test_draws_are_uniform_and_never_at_the_lower_end(monkeypatch):
    x0, eps, t = draws(torch.eye(3), 30_000, 0.2, 0.7, torch.Generator().manual_seed(0), NOBODY.tensor_options)
    assert x0.dtype == eps.dtype == t.dtype == F64 and x0.shape == eps.shape == (30_000, 3)
    assert float(t.min()) > 0.2 and float(t.max()) <= 0.7
    assert abs(float(t.mean()) - 0.45) < 5 * 0.5 / math.sqrt(12 * 30_000)
    assert bool(((x0.mean(0) - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / 30_000)).all())
    assert abs(float(eps.mean())) < 5 / math.sqrt(90_000) and abs(float(eps.std()) - 1) < 5 / math.sqrt(180_000)
    single = {"dtype": torch.float32, "device": torch.device("cpu")}
    one, two, times = draws(HG(), 5, 0.0, 1.0, torch.Generator().manual_seed(0), single)
    assert one.dtype == two.dtype == torch.float32 and times.dtype == F64 and one.shape == (5, 2)
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.zeros(n, dtype=F64))  # which it may be, once in 2^53
    assert draws(torch.eye(3), 2, 0.2, 0.7, torch.Generator(), NOBODY.tensor_options)[2].tolist() == [0.7, 0.7]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(rule="last"), "unknown rule 'last' of Algorithm 1: use one of first crossing, as printed"),
        (dict(threshold=0.0), "0 < threshold <= 1, samples >= 1 and intervals >= 2, got 0.0, 20000 and 3"),
        (dict(threshold=1.5), "got 1.5, 20000 and 3"),
        (dict(threshold=math.nan), "got nan"),
        (dict(samples=0), "got 0.9, 0 and 3"),
        (dict(intervals=1), "got 0.9, 20000 and 1"),
        (dict(reading="code"), "unknown reading 'code'"),
        (dict(eta=-1.0), "eta must be at least 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        cut(**{"score": DiffusedData(POINT, USUAL), **arguments})
    assert "\n" not in str(caught.value)
