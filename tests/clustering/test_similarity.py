"""The similarity of two times, compared with laws for which it is a normal probability."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.datasets import load_digits

from psmlib.clustering import optimal_denoiser as module
from psmlib.clustering.optimal_denoiser import READINGS, curve, running_mean, similarity
from psmlib.data.toys import Mixture
from psmlib.exact.finite_set import DiffusedData
from psmlib.process import VE, VP, OTFlow
from psmlib.score import Score

F64 = torch.float64
USUAL = VP(0.1, 20.0)
PROCESSES = [USUAL, VE(0.01, 5.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def agrees(share, want):
    """Mean share against a probability, in standard errors of a Bernoulli variable, which is the most it can have."""
    stderr = math.sqrt(max(want * (1 - want), 1e-4) / len(share))
    assert abs(float(share.mean()) - want) < 4 * stderr, (float(share.mean()), want, stderr)


@pytest.fixture(scope="module")
def digits():
    return torch.tensor(load_digits().data, dtype=F64) / 16


# laws with a closed form


@each
@pytest.mark.parametrize("anchor", [0.0, 0.4, 1.0])
def test_one_data_point_leaves_nothing_to_tell(p, anchor):
    data = torch.tensor([[0.3, -1.2, 0.8]], dtype=F64)
    score, t = DiffusedData(data, p), torch.linspace(0.01, 1, 25, dtype=F64)
    for reading in READINGS if anchor != 0.4 else ("paper", "denoised"):
        share = similarity(score, data.expand(25, -1), noise(25, 3), t, anchor, eta=1e-9, reading=reading, mean=data[0])
        assert torch.equal(share, torch.ones(25, dtype=F64)), reading


@pytest.mark.parametrize("t", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("eta", [0.05, 0.5])
def test_two_points_on_a_line(t, eta):
    # E[x_0 | x] = tanh(alpha x / sigma^2): the guess is good enough where the noise is above a threshold
    n, data = 40_000, torch.tensor([[-1.0], [1.0]], dtype=F64)
    alpha, sigma = float(USUAL.alpha(t)), float(USUAL.sigma(t))
    gap = eta * sigma / alpha
    want = norm.sf(sigma / alpha * math.atanh(1 - gap) - alpha / sigma) if gap < 2 else 1.0
    x0 = data[torch.arange(n) % 2]
    share = similarity(DiffusedData(data, USUAL), x0, noise(n, 1), torch.full((n,), t, dtype=F64), 0.0, eta=eta)
    agrees(share, want)


@each
@pytest.mark.parametrize("t", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("anchor", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("reading", READINGS)
def test_a_gaussian(p, t, anchor, reading):
    if reading == "same point" and anchor == 0.4:
        return  # refused, see below
    s, mean, n = 0.5, torch.tensor([0.7, -0.3], dtype=F64), 20_000
    toy = Mixture(gaussians=[(1, mean.tolist(), s**2)])
    a, b = ((float(p.alpha(u)), float(p.sigma(u))) for u in (t, anchor))

    def told(alpha, sigma):
        """Factors of (x_0 - mean)/s and of eps in what is said of x_t: linear, for a Gaussian."""
        gain = (alpha * s**2 if reading == "denoised" else sigma) / (alpha**2 * s**2 + sigma**2)
        return gain * alpha * s, gain * sigma

    end = told(*b)
    if anchor == 0:
        end = (s, 0.0) if reading == "denoised" else (0.0, 1.0)
    elif reading == "same point":
        end = a[0] * s / a[1], 1.0
    std = math.dist(told(*a), end)
    for eta in (0.3 * std, std):  # shares of .236 and .683
        x0 = mean + s * noise(n, 2, seed=1)
        times = torch.full((n,), t, dtype=F64)
        share = similarity(toy.diffused(p), x0, noise(n, 2), times, anchor, eta=eta, reading=reading, mean=mean)
        assert share.shape == (n,) and set(share.unique().tolist()) <= {0.0, 0.5, 1.0}
        agrees(share.repeat_interleave(2), math.erf(eta / std / math.sqrt(2)))


# what the readings compare


class Told(Score):
    """Says of every point that its noise is 10 t."""

    process = OTFlow()

    def predict(self, x, t):
        return torch.zeros_like(x) + 10 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)


def test_the_readings_by_hand():
    # x_t = (1 - t) x_0 + t eps = .5 + .25 = .75 and .5 - .5 = 0 at t = 1/2; the noise said is 5, and 2.5 at t = 1/4
    x0, eps, t = torch.ones(1, 2, dtype=F64), torch.tensor([[0.5, -1.0]], dtype=F64), torch.tensor([0.5], dtype=F64)
    mean = torch.tensor([0.1, -4.0], dtype=F64)
    differences = {
        ("paper", 0.0): (4.5, 6.0),  # 5 - eps
        ("paper", 0.25): (2.5, 2.5),
        ("paper", 1.0): (5.0, 5.0),
        ("same point", 0.0): (4.5, 6.0),
        ("same point", 1.0): (5 - (0.75 - 0.05) / 0.5, 5 - (0 + 2) / 0.5),  # 5 - (x_t - mean / 2) / (1/2)
        # E[x_0 | x_t] = (x_t - 5/2) / (1/2) = -3.5 and -5, against x_0 and (x_1/4 - 2.5 / 4) / (3/4)
        ("denoised", 0.0): (4.5, 6.0),
        ("denoised", 0.25): (3.5 + 0.25 / 0.75, 5 - 0.125 / 0.75),
    }
    for (reading, anchor), (first, second) in differences.items():
        low, high = sorted((first, second))
        for eta, want in ((low - 1e-9, 0.0), (low + 1e-9, 0.5), (high - 1e-9, 0.5), (high + 1e-9, 1.0)):
            if low == high and want == 0.5:
                continue
            got = similarity(Told(), x0, eps, t, anchor, eta=eta, reading=reading, mean=mean)
            assert got.tolist() == [want], (reading, anchor, eta)


def test_the_threshold_itself_agrees():
    x0, t = torch.zeros(1, 2, dtype=F64), torch.tensor([0.5], dtype=F64)
    assert similarity(Told(), x0, torch.tensor([[1.0, 1.5]], dtype=F64), t, 0.0, eta=4.0).tolist() == [1.0]


@each
def test_a_time_is_like_itself(p, digits):
    x0, eps, score = digits[:20], noise(20, 64), DiffusedData(digits, p)
    for reading in ("paper", "denoised"):
        share = similarity(score, x0, eps, torch.full((20,), 0.3, dtype=F64), 0.3, eta=0.0, reading=reading)
        assert torch.equal(share, torch.ones(20, dtype=F64))


# finite data


@each
def test_at_the_datas_end_it_is_how_far_the_posterior_has_collapsed(p, digits):
    # eps*_t(x_t) - eps = (x_0 - E[x_0 | x_t]) alpha / sigma
    score, eps, eta = DiffusedData(digits, p), noise(400, 64), 2 / 256
    x0, t = digits[:400], torch.linspace(0.02, 1, 400, dtype=F64)
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    gap = (score.denoised(alpha * x0 + sigma * eps, t) - x0).abs() * alpha / sigma
    share = similarity(score, x0, eps, t, 0.0, eta=eta)
    assert float((share - (gap <= eta).double().mean(1)).abs().max()) == 0
    assert 0.3 < float(share.mean()) < 0.9


def test_certainty_near_the_data_and_a_rise_at_the_far_end(digits):
    score, n = DiffusedData(digits, USUAL), 400
    x0, eps = digits[torch.arange(n)], noise(n, 64)

    def mean(t, reading="paper", anchor=0.0):
        times = torch.full((n,), t, dtype=F64)
        return float(similarity(score, x0, eps, times, anchor, eta=2 / 256, reading=reading).mean())

    assert mean(1e-3) == 1.0 and mean(0.02) > 0.999
    levels = [mean(t) for t in (0.02, 0.1, 0.2, 0.4)]
    assert levels == sorted(levels, reverse=True) and levels[-1] < 0.3
    back = [mean(t) for t in (0.5, 0.7, 0.85, 1.0)]
    assert back == sorted(back) and back[-1] > 0.9  # both ends are the noise itself, so far ends are alike
    assert mean(1.0, "denoised") < 0.3  # the expected data point has no such end
    assert mean(0.02, anchor=1.0) > 0.9


def test_images_and_single_precision(digits):
    flat = DiffusedData(digits, USUAL)
    score = DiffusedData(digits.float().reshape(-1, 1, 8, 8), USUAL)
    eps, t = noise(50, 64), torch.linspace(0.02, 1, 50, dtype=F64)
    mean = digits.mean(0)
    for reading, anchor in (("paper", 0.3), ("denoised", 0.0), ("same point", 1.0)):
        one = similarity(flat, digits[:50], eps, t, anchor, eta=0.01, reading=reading, mean=mean)
        args = digits[:50].float().reshape(-1, 1, 8, 8), eps.float().reshape(-1, 1, 8, 8), t
        two = similarity(score, *args, anchor, eta=0.01, reading=reading, mean=mean.float().reshape(1, 8, 8))
        assert two.dtype == F64 and float((one - two).abs().max()) <= 3 / 64  # a coordinate that lies on the threshold
        assert float((one - two).abs().mean()) < 1e-3


def test_pieces_make_no_difference(digits, monkeypatch):
    score, t = DiffusedData(digits, USUAL), torch.linspace(0.01, 1, 50, dtype=F64)
    args = score, digits[:50], noise(50, 64), t
    whole = [similarity(*args, a, eta=0.01, reading=r) for a, r in ((0.0, "paper"), (0.2, "denoised"))]
    monkeypatch.setattr(module, "_ROWS", 7)
    pieces = [similarity(*args, a, eta=0.01, reading=r) for a, r in ((0.0, "paper"), (0.2, "denoised"))]
    for a, b in zip(whole, pieces, strict=True):
        assert a.shape == b.shape and float((a - b).abs().max()) <= 1 / 64
    assert similarity(score, digits[:0], digits[:0], t[:0], 0.0, eta=0.1).shape == (0,)


@given(low=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_larger_threshold_agrees_more(low, more, seed):
    data = noise(6, 4, seed=seed)
    args = DiffusedData(data, USUAL), data, noise(6, 4, seed=seed + 1), torch.linspace(0.1, 1, 6, dtype=F64)
    a, b = (similarity(*args, 0.5, eta=eta) for eta in (low, low + more))
    assert bool((a <= b).all()) and bool((a >= 0).all()) and bool((b <= 1).all())


# averages over draws


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_running_mean_is_a_loop(pairs, downwards):
    t, share = (torch.tensor(column, dtype=F64) for column in zip(*pairs, strict=True))
    times, level = running_mean(t, share, downwards=downwards)
    assert times.tolist() == sorted(t.tolist(), reverse=downwards)
    if len(set(t.tolist())) == len(t):
        for time, mean in zip(times.tolist(), level.tolist(), strict=True):
            counted = [s for u, s in pairs if (u >= time if downwards else u <= time)]
            assert mean == pytest.approx(sum(counted) / len(counted), abs=1e-12)


def test_curve_is_a_loop():
    g = torch.Generator().manual_seed(0)
    t, share = 0.2 + 0.6 * torch.rand(300, generator=g, dtype=F64), torch.rand(300, generator=g, dtype=F64)
    centres, mean, stderr = curve(t, share, 6, 0.2, 0.8)
    torch.testing.assert_close(centres, 0.25 + 0.1 * torch.arange(6, dtype=F64))
    for i in range(6):
        inside = share[(t >= 0.2 + 0.1 * i) & (t < 0.3 + 0.1 * i)]
        assert float(mean[i]) == pytest.approx(float(inside.mean()), abs=1e-12)
        assert float(stderr[i]) == pytest.approx(float(inside.std()) / len(inside) ** 0.5, abs=1e-12)
    # ends belong to the outer bins; bins with one draw have no standard error and are left out
    found = curve(torch.tensor([0.0, 0.1, 0.4, 1.0, 0.9]), torch.tensor([1.0, 0.0, 0.5, 0.2, 0.4]), 4, 0.0, 1.0)
    assert found[0].tolist() == [0.125, 0.875]
    assert found[1].tolist() == pytest.approx([0.5, 0.3])
    assert [column.shape for column in curve(torch.ones(1), torch.ones(1), 4, 0.0, 1.0)] == 3 * [(0,)]


# what is refused


@pytest.mark.parametrize(
    "t, anchor, settings, message",
    [
        (
            0.5,
            0.0,
            dict(eta=0.1, reading="code"),
            "unknown reading 'code' of the similarity: use one of paper, same po",
        ),
        (0.5, 0.0, dict(eta=-0.1), "eta must be at least 0, got -0.1"),
        (0.5, 0.0, dict(eta=math.nan), "eta must be at least 0, got nan"),
        (0.0, 0.0, dict(eta=0.1), "times after 0, where there is noise: take t > 0"),
        (0.5, 1.0, dict(eta=0.1, reading="same point"), "the mean of the data: give mean="),
        (0.5, 0.3, dict(eta=0.1, reading="same point", mean=torch.zeros(2)), "two ends of time alone, not 0.3: use"),
    ],
)
def test_bad_input(t, anchor, settings, message):
    x = torch.ones(3, 2, dtype=F64)
    with pytest.raises(ValueError, match=message) as caught:
        similarity(Told(), x, x, torch.full((3,), t, dtype=F64), anchor, **settings)
    assert "\n" not in str(caught.value)
