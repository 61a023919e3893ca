"""The toys: their constants, samples and densities agree."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from psmlib.data.toys import HG, TOYS, TY, Mixture, exponential_ve, load_toy, two_gaussians

F64 = torch.float64
N_FACTS = 200_000  # the sample behind the recorded figures


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def slanted():
    return Mixture(
        gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
        boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
        name="slanted",
    )


@pytest.fixture(scope="module", params=[HG, TY, slanted], ids=["HG", "TY", "slanted"])
def toy(request):
    return request.param()


@pytest.fixture(scope="module")
def sampled(toy):
    return toy, toy.sample(100_000, gen())


@pytest.mark.parametrize(
    "make, mean, std, entropy",
    [(HG, (0, 0), (0.932, 0.932), 0.953), (TY, (0.048, 0.090), (0.466, 0.750), 0.476)],
)
def test_recorded_figures(make, mean, std, entropy):
    m = make()
    for got, want, s in zip(m.mean.tolist(), mean, std, strict=True):
        assert abs(got - want) < 2 * s / N_FACTS**0.5 + 5e-4
    for got, want in zip(m.std.tolist(), std, strict=True):
        assert abs(got - want) < 2 * want / (2 * N_FACTS) ** 0.5 + 5e-4
    assert abs(m.entropy - entropy) < 0.002 + 5e-4


def hg_by_hand(x):
    """The hash sign, written out with numpy."""
    p = np.zeros(len(x))
    for lo, hi in [((0.4, -1.25), (0.5, 1.25)), ((-0.5, -1.25), (-0.4, 1.25))]:
        p += np.all((x >= lo) & (x <= hi), 1) / 0.25
        p += np.all((x[:, ::-1] >= lo) & (x[:, ::-1] <= hi), 1) / 0.25
    for c in [(0, 0), (1.25, 1.25), (1.25, -1.25), (-1.25, 1.25), (-1.25, -1.25)]:
        p += np.exp(-((x - c) ** 2).sum(1) / 0.04) / (2 * np.pi * 0.02)
    return p / 9


AXIS_BOXES = [  # count, x interval, y interval
    (500, -1, -0.9, -0.8, -0.5), (500, -1.1, -0.8, -0.5, -0.4),
    (500, -0.6, -0.5, -0.8, -0.4), (125, -0.5, -0.4, -0.65, -0.55), (500, -0.4, -0.3, -0.8, -0.4),
    (125, 0, 0.2, -0.7, -0.6), (500, 0.4, 0.5, -0.8, -0.4), (500, 0.7, 0.8, -0.8, -0.4),
    (500, 1, 1.1, -0.8, -0.4), (200, -0.6, -0.5, -1.3, -1),
    (500, -0.25, -0.15, -1.3, -0.9), (500, 0.15, 0.25, -1.3, -0.9),
    (500, -0.15, 0.15, -1.3, -1.2), (500, -0.15, 0.15, -1, -0.9),
    (500, 0.45, 0.55, -1.3, -0.9), (500, 0.85, 0.95, -1.3, -0.9), (500, 0.55, 0.85, -1.3, -1.2),
]  # fmt: skip
TURNED = [  # count, half widths, released angle, centre
    (500, (0.2, 0.05), -70, (0, -0.6)), (500, (0.2, 0.05), -110, (0.2, -0.6)), (500, (0.2, 0.05), -130, (0.6, -0.6)),
    (200, (0.1, 0.05), -130, (1.2, -0.7)), (200, (0.1, 0.05), -45, (1.2, -0.5)),
    (200, (0.1, 0.05), -45, (-0.45, -1)), (200, (0.1, 0.05), -130, (-0.65, -1)),
]  # fmt: skip


def ty_by_hand(x):
    """THANK YOU as the released generator makes it: local rows times R(a), R = [[cos, -sin], [sin, cos]]."""
    p, total = np.zeros(len(x)), 0

    def gaussian(count, centre, var):
        return count * np.exp(-((x - centre) ** 2).sum(1) / (2 * var)) / (2 * np.pi * var), count

    pieces = [gaussian(4500, (0, 0.6), 0.015)]
    pieces += [
        gaussian(1000, (0.45 * np.cos(k * np.pi / 4), 0.6 + 0.45 * np.sin(k * np.pi / 4)), 0.003) for k in range(8)
    ]
    pieces += [
        gaussian(300, (0.7 * np.cos(k * np.pi / 8), 0.6 + 0.7 * np.sin(k * np.pi / 8)), 0.001) for k in range(16)
    ]
    for n, x0, x1, y0, y1 in AXIS_BOXES:
        inside = np.all((x >= (x0, y0)) & (x <= (x1, y1)), 1)
        pieces.append((n * inside / ((x1 - x0) * (y1 - y0)), n))
    for n, half, a, centre in TURNED:
        c, s = np.cos(np.radians(a)), np.sin(np.radians(a))
        local = (x - centre) @ np.linalg.inv(np.array([[c, -s], [s, c]]))
        pieces.append((n * np.all(np.abs(local) <= half, 1) / (4 * half[0] * half[1]), n))
    for density, n in pieces:
        p, total = p + density, total + n
    assert len(pieces) == 49 and total == 27050
    return p / total


@pytest.mark.parametrize("make, by_hand", [(HG, hg_by_hand), (TY, ty_by_hand)], ids=["HG", "TY"])
def test_density_is_the_one_described(make, by_hand):
    toy = make()
    x = torch.cat([toy.sample(3000, gen(1)), 4 * torch.rand(2000, 2, generator=gen(2), dtype=F64) - 2])
    np.testing.assert_allclose(toy.log_prob(x).exp().numpy(), by_hand(x.numpy()), rtol=1e-10, atol=1e-300)


def test_density_integrates_to_one_with_the_stated_moments(toy):
    # cells of .01 have the borders of all axis-parallel boxes on their own; turned boxes cut through some
    tolerance = 1e-9 if toy.name == "HG" else 2e-3
    side = (torch.arange(-260, 260, dtype=F64) + 0.5) / 100
    x = torch.cartesian_prod(side, side)
    mass = toy.log_prob(x).exp() * 1e-4
    assert float(mass.sum()) == pytest.approx(1, abs=tolerance)
    mean = mass @ x
    torch.testing.assert_close(mean, toy.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close((mass[:, None] * (x - mean)).T @ (x - mean), toy.cov, rtol=0, atol=max(tolerance, 1e-4))


def test_moments_of_samples(sampled):
    toy, x = sampled
    n, dev = len(x), x - toy.mean
    assert x.dtype == F64 and x.shape == (100_000, 2)
    assert (dev.mean(0).abs() < 4 * toy.std / n**0.5).all()
    outer = dev[:, :, None] * dev[:, None, :]
    assert ((outer.mean(0) - toy.cov).abs() < 4 * outer.std(0) / n**0.5).all()
    torch.testing.assert_close(toy.std, toy.cov.diagonal().sqrt())


def test_samples_have_the_density(sampled):
    toy, x = sampled
    log_prob = toy.log_prob(x)
    assert log_prob.isfinite().all()
    assert abs(float(log_prob.mean()) + toy.entropy) < 4 * float(log_prob.std()) / len(x) ** 0.5


def test_hash_samples_fill_their_cells():
    # exact cell probabilities, because every component is a product of two one-dimensional laws
    toy, n = HG(), 100_000
    edges = np.array([-3, -1.4, -1.25, -1.1, -0.5, -0.45, -0.4, -0.1, 0, 0.1, 0.4, 0.43, 0.5, 1.1, 1.25, 1.4, 3])
    cell = np.zeros((len(edges) - 1,) * 2)
    for c, cov, w in zip(toy.gauss_mean, toy.gauss_cov, toy.gauss_weight, strict=True):
        px, py = (np.diff(stats.norm.cdf(edges, float(c[k]), float(cov[k, k]) ** 0.5)) for k in range(2))
        cell += float(w) * np.outer(px, py)
    for c, h, w in zip(toy.box_centre, toy.box_half, toy.box_weight, strict=True):
        px, py = (np.diff(stats.uniform.cdf(edges, float(c[k] - h[k]), 2 * float(h[k]))) for k in range(2))
        cell += float(w) * np.outer(px, py)
    assert cell.sum() == pytest.approx(1, abs=1e-12)
    x = toy.sample(n, gen(3)).numpy()
    count = np.histogram2d(x[:, 0], x[:, 1], [edges, edges])[0]
    keep = cell * n > 5
    observed = np.append(count[keep], n - count[keep].sum())
    expected = np.append(cell[keep], 1 - cell[keep].sum()) * n
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_a_turned_box_is_turned_the_right_way():
    a = math.radians(30)
    box = Mixture(boxes=[(1, [0.2, -0.1], [2.0, 0.5], 30.0)])
    dev = (box.sample(20_000, gen()) - torch.tensor([0.2, -0.1], dtype=F64)).numpy()
    along, across = dev @ [math.cos(a), math.sin(a)], dev @ [-math.sin(a), math.cos(a)]
    assert stats.kstest(along, "uniform", args=(-2, 4)).pvalue > 1e-3
    assert stats.kstest(across, "uniform", args=(-0.5, 1)).pvalue > 1e-3
    assert float(box.log_prob(torch.tensor([[0.2, -0.1]]))) == pytest.approx(-math.log(4), abs=1e-6)
    tip = [0.2 + 1.99 * math.cos(a), -0.1 + 1.99 * math.sin(a)]
    mirror = [0.2 + 1.99 * math.cos(a), -0.1 - 1.99 * math.sin(a)]
    inside = box.log_prob(torch.tensor([tip, mirror], dtype=F64))
    assert inside.tolist() == pytest.approx([-math.log(4), -math.inf])
    assert box.entropy == pytest.approx(math.log(4), abs=1e-12)


def test_gaussians_agree_with_torch():
    m = Mixture(gaussians=[(1, [0.0, 1.0], [[2.0, 0.3], [0.3, 0.5]]), (3, [1.0, 1.0], 0.2)])
    normal = torch.distributions.MultivariateNormal
    cov = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=F64)
    first = normal(torch.tensor([0.0, 1.0], dtype=F64), cov)
    second = normal(torch.tensor([1.0, 1.0], dtype=F64), 0.2 * torch.eye(2, dtype=F64))
    x = m.sample(50, gen())
    want = (0.25 * first.log_prob(x).exp() + 0.75 * second.log_prob(x).exp()).log()
    torch.testing.assert_close(m.log_prob(x), want, rtol=1e-11, atol=1e-11)
    single = Mixture(gaussians=[(1, [0.0, 1.0], [[2.0, 0.3], [0.3, 0.5]])])
    assert single.entropy == pytest.approx(float(first.entropy()), abs=1e-4)
    torch.testing.assert_close(single.cov, cov)


def test_other_dimensions():
    line = Mixture(gaussians=[(1, [-1.0], 0.04), (1, [1.0], 0.04)])
    assert line.sample(5, gen()).shape == (5, 1)
    assert float(line.cov) == pytest.approx(1.04)
    side = torch.linspace(-3, 3, 2001, dtype=F64)[:, None]
    assert float(torch.trapezoid(line.log_prob(side).exp(), side[:, 0])) == pytest.approx(1, abs=1e-10)


def test_centred_moves_and_nothing_else(toy):
    moved, x = toy.centred(), toy.sample(200, gen())
    assert moved.mean.abs().max() < 1e-12 and moved.name == toy.name
    torch.testing.assert_close(moved.log_prob(x - toy.mean), toy.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.cov, toy.cov, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved.sample(200, gen()), x - toy.mean, rtol=1e-12, atol=1e-14)
    assert abs(moved.entropy - toy.entropy) < 1e-9
    assert (toy.centres - toy.mean - moved.centres).abs().max() < 1e-14  # the original stays where it was


def test_weights_are_normalised():
    assert float(TY().weights.sum()) == pytest.approx(1, abs=1e-14)
    assert float(TY().weights[0] * 27050) == pytest.approx(4500)
    torch.testing.assert_close(HG().weights, torch.full((9,), 1 / 9, dtype=F64))


def test_samples_follow_their_generator():
    m = slanted()
    assert torch.equal(m.sample(50, gen(5)), m.sample(50, gen(5)))
    assert not torch.equal(m.sample(50, gen(5)), m.sample(50, gen(6)))
    assert m.sample(0).shape == (0, 2)


def test_single_precision_in_and_out():
    x = HG().sample(20, gen()).float()
    assert HG().log_prob(x).dtype == torch.float32
    torch.testing.assert_close(HG().log_prob(x).double(), HG().log_prob(x.double()), rtol=1e-6, atol=1e-6)


def test_load_toy_is_centred():
    for name, make in TOYS.items():
        m = load_toy(name)
        assert m.name == name and m.mean.abs().max() < 1e-12
        torch.testing.assert_close(m.cov, make().cov, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: load_toy("HH"), "unknown toy 'HH': use one of"),
        (lambda: Mixture(), "at least one component"),
        (lambda: Mixture(gaussians=[(0.0, [0.0, 0.0], 1.0)]), "weights of mixture must be positive"),
        (lambda: Mixture(gaussians=[(math.nan, [0.0, 0.0], 1.0)]), "weights"),
        (lambda: Mixture(gaussians=[(1, [0.0, 0.0], -1.0)], name="bad"), "bad has a covariance"),
        (lambda: Mixture(gaussians=[(1, [0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]])]), "covariance"),
        (lambda: Mixture(boxes=[(1, [0.0, 0.0], [1.0, 0.0], 0.0)]), "box width"),
        (lambda: Mixture(boxes=[(-1, [0.0, 0.0], [1.0, 1.0], 0.0)]), "weights"),
    ],
)
def test_bad_mixtures_are_named_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


# the toy of Appendix K.1


def test_the_density_on_a_line_is_the_papers():
    x = torch.linspace(-1, 6, 50, dtype=F64)
    wanted = 0.3 * stats.norm.pdf(x.numpy(), 1, 0.1) + 0.7 * stats.norm.pdf(x.numpy(), 3, 0.5)
    torch.testing.assert_close(two_gaussians().log_prob(x[:, None]).exp(), torch.as_tensor(wanted))


@pytest.mark.parametrize("base", [2.0, 25.0])
def test_the_process_on_a_line_is_the_papers(base):
    p, t = exponential_ve(base), torch.tensor([0.0, 0.1, 0.6, 1.0], dtype=F64)
    torch.testing.assert_close(p.diffusion2(t), base ** (2 * t))
    torch.testing.assert_close(p.sigma(t) ** 2, (base ** (2 * t) - 1) / (2 * math.log(base)))
    for s in t[1:].tolist():  # the variance is the integral of g^2
        assert float(p.sigma(s)) ** 2 == pytest.approx(quad(lambda u: base ** (2 * u), 0, s)[0], rel=1e-9)
    assert float(p.drift(0.3)) == 0 and p.prior_std == float(p.sigma(1.0))


@pytest.mark.parametrize("base", [1.0, 0.5, math.nan])
def test_the_noise_on_a_line_must_grow(base):
    with pytest.raises(ValueError, match="base above 1, got"):
        exponential_ve(base)
