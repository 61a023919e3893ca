"""Dequantisation and bits per dimension against densities whose entropy is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from psmlib.data.dequantisation import SCALES, add_noise, affine, bits_per_dim, dequantise, quantise

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def some(levels, *shape, seed=0):
    return torch.randint(levels, shape, generator=gen(seed)).to(torch.uint8)


def test_the_uniform_density_costs_exactly_log2_levels():
    for levels in (2, 17, 256):
        for shape in ((1, 8, 8), (3, 32, 32)):
            assert bits_per_dim(0.0, shape, levels) == math.log2(levels)
            flat = -math.prod(shape) * math.log(2)  # on [-1, 1) the density is 2^-D
            assert bits_per_dim(flat, shape, levels, "symmetric") == pytest.approx(math.log2(levels), abs=1e-12)


def test_the_offset_is_the_printed_one():
    nats = 3072 * math.log(2)
    assert bits_per_dim(nats, (3, 32, 32), 256) == pytest.approx(8 - 1)
    assert bits_per_dim(nats, (3, 32, 32), 256, "symmetric") == pytest.approx(7 - 1)


@settings(deadline=None, max_examples=50)
@given(
    levels=st.integers(2, 256), width=st.floats(1e-3, 1e3), left=st.floats(-5, 5), seed=st.integers(0, 10**6)
)  # fmt: skip
def test_a_density_that_is_flat_in_each_level_costs_the_code_length_of_the_levels(levels, width, left, seed):
    """For such a density Jensen's inequality is an equality, whatever the affine map."""
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.ones(levels))
    k = torch.from_numpy(draw.choice(levels, size=(5, 2, 3), p=p))
    x = width * dequantise(k, levels, gen(seed)) + left
    cell = ((x - left) / width * levels).floor().long().clamp(0, levels - 1)
    log_prob = torch.from_numpy(np.log(p * levels / width))[cell].flatten(1).sum(1)
    code = -torch.from_numpy(np.log2(p))[k].flatten(1).mean(1)
    torch.testing.assert_close(bits_per_dim(log_prob, (2, 3), levels, width), code, rtol=1e-9, atol=1e-9)


def test_one_width_per_dimension():
    """A product of uniform densities on intervals of different widths: again log2(levels)."""
    width = torch.tensor([[[0.5, 1.0], [3.0, 20.0]]], dtype=F64)
    log_prob = -width.log().sum()
    assert float(bits_per_dim(log_prob, (1, 2, 2), 17, width)) == pytest.approx(math.log2(17), abs=1e-12)
    rows = -2 * torch.tensor([0.5, 3.0], dtype=F64).log().sum()
    broad = bits_per_dim(rows, (1, 2, 2), 17, torch.tensor([0.5, 3.0]))
    assert float(broad) == pytest.approx(math.log2(17), abs=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_smooth_density_is_charged_at_least_the_code_length(scale):
    """A Gaussian on dequantised data bounds the code length of its integrals over the levels, and closely."""
    levels, (width, left) = 64, affine(scale)
    law = stats.norm(left + 0.4 * width, 0.15 * width)
    edges = left + width * np.arange(levels + 1) / levels
    p = np.diff(law.cdf(edges))
    draw = np.random.default_rng(0)
    k = torch.from_numpy(draw.choice(levels, size=(200_000, 1), p=p / p.sum()))
    x = dequantise(k, levels, gen(), scale=scale)
    bits = bits_per_dim(torch.from_numpy(law.logpdf(x.numpy()))[:, 0], (1,), levels, scale)
    code = -np.log2(p)[k[:, 0]]
    gap = bits.numpy() - code
    assert gap.mean() > 4 * gap.std() / len(gap) ** 0.5 and gap.mean() < 2e-3


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("scale", SCALES)
def test_dequantised_levels_go_back(levels, scale):
    k = some(levels, 50, 1, 8, 8)
    x = dequantise(k, levels, gen(), scale=scale)
    assert x.dtype == F64 and x.shape == k.shape
    assert torch.equal(quantise(x, levels, scale=scale), k)


def test_noise_is_uniform_and_independent_of_the_level():
    k = some(17, 100_000)
    u = (17 * dequantise(k, 17, gen(1)) - k).numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u, k)[0, 1]) < 4 / len(k) ** 0.5


class Ones:
    """Stands for torch.rand at its largest value."""

    @staticmethod
    def rand(shape, dtype, **_):
        return torch.full(shape, 1.0, dtype=dtype).nextafter(torch.zeros((), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
def test_the_upper_end_is_never_reached(monkeypatch, dtype, scale):
    monkeypatch.setattr(torch, "rand", Ones.rand)
    for levels in (2, 17, 100, 256):
        k = torch.arange(levels)
        assert bool((add_noise(k, None, dtype) < k + 1).all())
        width, left = affine(scale)
        assert float(dequantise(k, levels, scale=scale, dtype=dtype).max()) < left + width


def test_draws_follow_their_generator():
    k = some(17, 100)
    assert torch.equal(dequantise(k, 17, gen(3)), dequantise(k, 17, gen(3)))
    assert not torch.equal(dequantise(k, 17, gen(3)), dequantise(k, 17, gen(4)))


def test_scalings_are_affine_images_of_each_other():
    k = some(17, 100)
    unit, both = (dequantise(k, 17, gen(), scale=scale) for scale in ("unit", "symmetric"))
    torch.testing.assert_close(both, 2 * unit - 1, rtol=0, atol=1e-15)
    assert float(unit.min()) >= 0 and -1 <= float(both.min()) < 0


def test_what_lies_outside_goes_to_the_nearest_level():
    assert quantise(torch.tensor([-3.0, 3.0]), 17, scale="symmetric").tolist() == [0, 16]
    assert quantise(torch.tensor([-torch.inf, torch.inf]), 256).tolist() == [0, 255]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: dequantise(torch.zeros(3), 17), "takes whole levels 0..16, got torch.float32"),
        (lambda: dequantise(torch.zeros(3, dtype=torch.bool), 17), "takes whole levels"),
        (lambda: dequantise(torch.tensor([3, 17]), 17), "levels go from 3 to 17"),
        (lambda: dequantise(torch.tensor([-1, 3]), 17), "levels go from -1 to 3"),
        (lambda: dequantise(torch.tensor([1]), 17, scale="centred"), "unknown scale 'centred': use one of unit"),
        (lambda: quantise(torch.zeros(3), 17, scale="x"), "unknown scale 'x'"),
        (lambda: bits_per_dim(0.0, (1, 8, 8), 17, "x"), "unknown scale 'x'"),
        (lambda: bits_per_dim(0.0, (1, 8, 8), 1), "levels >= 2"),
        (lambda: bits_per_dim(0.0, (0, 8, 8), 17), "and a shape"),
        (lambda: bits_per_dim(0.0, (1, 8, 8), 17, -2.0), "must be a positive width"),
        (lambda: bits_per_dim(0.0, (1, 8, 8), 17, math.nan), "must be a positive width"),
    ],
)
def test_bad_input_is_told_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
