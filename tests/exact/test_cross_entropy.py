"""Entropies and cross-entropies against values found in other ways."""

import math

import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from psmlib.data.toys import HG, TY, Mixture, load_toy, two_gaussians
from psmlib.exact import cross_entropy as known_values
from psmlib.exact.cross_entropy import cross_entropy, entropy, fingerprint
from psmlib.machine import paths
from psmlib.process import EDM, VE, VP, OTFlow

F64 = torch.float64
PSM, WIDE = VP(0.0, 10.0), VP(0.0, 12.0)
ONE = Mixture(gaussians=[(1, [0.4, 0.1], 0.3)])


@pytest.fixture
def only_computed(monkeypatch, tmp_path):
    """No file of values, and nothing remembered."""
    monkeypatch.setattr(paths, "EXACT_VALUES", tmp_path / "none.json")
    known_values._known.cache_clear()
    yield
    known_values._known.cache_clear()


# HG: the densities of its nine components are products, so a tensor of Gauss-Legendre panels of .0003 in numpy serves;
# TY: its letters are of constant densities on polygons, whose areas scan lines give exactly, and the flower is smooth
@pytest.mark.parametrize("make, value", [(HG, 0.954478878530), (TY, 0.475252347741)], ids=["HG", "TY"])
def test_entropies_of_the_toys_by_another_way(make, value):
    assert entropy(make())[0] == pytest.approx(value, abs=1e-9) and entropy(make())[1] < 1e-6
    assert make().entropy == make().centred().entropy == entropy(make())[0]


HG_BY_HAND = [(PSM, 1e-3, 0.963422860393), (WIDE, 0.01, 1.051613327716), (PSM, 1e-4, 0.955374272893)]


@pytest.mark.parametrize("process, t0, value", HG_BY_HAND)
def test_cross_entropies_of_the_hash_sign_by_another_way(process, t0, value):
    found, error = cross_entropy(load_toy("HG"), process, t0)
    assert abs(found - value) < 5e-8 and error < 1e-6


def test_the_entropy_on_the_line_by_quad():
    def f(x):
        p = 0.3 * stats.norm.pdf(x, 1, 0.1) + 0.7 * stats.norm.pdf(x, 3, 0.5)
        return -p * math.log(p)

    value, error = entropy(two_gaussians())
    assert value == pytest.approx(quad(f, -1, 8, points=[0.5, 1, 1.5, 3], epsabs=1e-13)[0], abs=1e-11) and error < 1e-10


GAPS = [("TY", 1e-3, PSM, 0.008), ("HG", 1e-3, PSM, 0.009), ("TY", 0.01, WIDE, 0.11), ("HG", 0.01, WIDE, 0.097)]


@pytest.mark.parametrize("name, t0, process, gap", GAPS)
def test_the_exact_score_is_quoted_more_than_the_entropy(name, t0, process, gap):
    toy = load_toy(name)
    assert cross_entropy(toy, process, t0)[0] - toy.entropy == pytest.approx(gap, abs=5e-4)


@pytest.mark.parametrize("name", ["TY", "HG"])
@pytest.mark.parametrize("process", [PSM, OTFlow()], ids=["VP", "OTFlow"])
def test_values_of_the_file_are_plain_averages(name, process):
    toy = load_toy(name)
    x = toy.sample(10_000, torch.Generator().manual_seed(0))
    for t0 in (0.0, 1e-3):
        values = -toy.diffused(process).log_prob(x, t0)
        off = float(values.mean()) - cross_entropy(toy, process, t0)[0]
        assert abs(off) < 4 * float(values.std()) / len(x) ** 0.5


@pytest.mark.parametrize("process", [PSM, OTFlow(), VE(0.01, 5.0), EDM(3.0)], ids=lambda p: type(p).__name__)
def test_a_gaussian_has_closed_forms(process):
    # E(x - m_t)^2 = v + (1 - alpha)^2 m^2 on each axis, m_t = alpha m
    t0 = 0.2
    alpha, sigma = float(process.alpha(t0)), float(process.sigma(t0))
    later, square = alpha**2 * 0.3 + sigma**2, 2 * 0.3 + (1 - alpha) ** 2 * float(ONE.mean.square().sum())
    value, error = cross_entropy(ONE, process, t0)
    assert abs(value - math.log(2 * math.pi * later) - square / (2 * later)) <= error + 1e-10 and error < 1e-6
    assert ONE.entropy == pytest.approx(math.log(2 * math.pi * math.e * 0.3), abs=1e-9)


def test_beyond_the_plane_the_error_is_a_standard_error():
    space = Mixture(gaussians=[(1, [0.0, 0.0, 0.5], 0.3)], name="space")
    value, error = entropy(space)
    assert abs(value - 1.5 * math.log(2 * math.pi * math.e * 0.3)) < 5 * error < 0.01


def test_fingerprints_know_what_matters():
    toy = load_toy("TY")
    moved = [TY(), Mixture(gaussians=[(2, [7.0, 1.0], 0.3)])]
    assert fingerprint(moved[0]) == fingerprint(toy) and fingerprint(moved[1]) == fingerprint(ONE)
    assert fingerprint(TY(), 0.99) != fingerprint(toy, 0.99)  # the noise moves an off-centre toy
    others = [Mixture(gaussians=[(1, [0.4, 0.1], v)]) for v in (0.3 + 1e-7, 30.0, 1e-20)]
    others += [load_toy("HG"), toy, Mixture(boxes=[(1, [0.4, 0.1], [0.3**0.5] * 2, 0.0)])]
    assert len({fingerprint(m) for m in (ONE, *others)}) == len(others) + 1
    hazy = Mixture(gaussians=[(1, [0.4 * (1 + 2e-16), 0.1], 0.3 * (1 - 2e-16))])
    assert fingerprint(hazy) == fingerprint(ONE)


def test_times_that_differ_by_rounding_are_one():
    toy, t0 = load_toy("TY"), PSM.time_of_sigma(WIDE.sigma(0.01))
    assert known_values._known()[fingerprint(toy)], "the file has values of TY"
    values = [cross_entropy(toy, *where) for where in ((WIDE, 0.01), (PSM, t0), (PSM, t0.float()), (PSM, float(t0)))]
    assert len(set(values)) == 1
    assert cross_entropy(ONE, PSM, 0.2) != cross_entropy(ONE, PSM, 0.2001)


def test_what_is_not_in_the_file_is_computed_once(only_computed, monkeypatch):
    first = cross_entropy(two_gaussians(), PSM, 0.1)
    monkeypatch.setattr(known_values, "cubature", None)
    assert cross_entropy(two_gaussians(), PSM, 0.1) == first
    with pytest.raises(TypeError):
        cross_entropy(two_gaussians(), PSM, 0.2)
