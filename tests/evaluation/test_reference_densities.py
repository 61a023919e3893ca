"""Reference densities compared with counting, scipy, scikit-learn and quadrature; the Gaussian Score by autograd."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from psmlib.data.images import Images, load
from psmlib.evaluation.reference_densities import (
    REFERENCES,
    Gaussian,
    GaussianCopula,
    IndependentPixels,
    KernelDensity,
    Uniform,
    references,
    subsample,
    training_images,
)
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)
TIMES = [0.05, 0.3, 0.9]


def toy(shape=(1, 1, 2), levels=4, sizes=(60, 40, 50), flip=False, seed=0):
    """Random images whose pixels depend on one another."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in zip(("train", "validation", "test"), sizes, strict=True):
        first = rng.integers(levels, size=(n, *shape[:2], 1))
        arrays[split] = np.clip(first + rng.integers(-1, 2, size=(n, *shape)), 0, levels - 1).astype(np.uint8)
    return Images("toy", arrays, levels=levels, flip=flip)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def unit_points(images, n=30, seed=0):
    return torch.rand(n, *images.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=rtol, atol=atol)


def cell_grid(levels, nodes=60):
    """Nodes and weights on the unit square that never straddle a cell. Shapes: (m, 2), (m,)."""
    side, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(nodes))
    edges = torch.arange(levels, dtype=F64)[:, None]
    points, weights = ((edges + (side + 1) / 2) / levels).flatten(), (weight / 2 / levels).repeat(levels)
    return torch.cartesian_prod(points, points), torch.outer(weights, weights).flatten()


def test_histograms_by_counting():
    images, a = toy(), 0.7
    pixels, x = IndependentPixels(images, a), images.test.flatten(1)
    want = torch.zeros(len(x), dtype=F64)
    for d in range(2):
        counts = Counter(images.train.flatten(1)[:, d].tolist())
        want -= torch.tensor([math.log2((counts[k] + a) / (60 + 4 * a)) for k in x[:, d].tolist()], dtype=F64) / 2
    for seed in (0, 1):  # a code of the levels: the noise within a cell does not matter
        close(pixels.bits_per_dim(images.test, torch.Generator().manual_seed(seed), draws=2), want)
    close(pixels.probs.sum(1), torch.ones(2))


@pytest.mark.parametrize("kind", [Uniform, IndependentPixels, GaussianCopula])
def test_densities_on_the_cube_integrate_to_one(kind):
    images = toy()
    reference, (x, weight) = kind(images), cell_grid(4)
    density = reference.log_prob(x).exp()
    assert abs(float(density @ weight) - 1) < (1e-4 if kind is GaussianCopula else 1e-12)
    outside = torch.tensor([[-0.01, 0.5], [0.5, 1.0]], dtype=F64)
    assert bool((reference.log_prob(outside) == -torch.inf).all())


def test_samples_of_independent_pixels_have_their_levels_and_no_dependence():
    digits = load("digits")
    x = IndependentPixels(digits).sample(4000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.uint8 and x.shape == (4000, 1, 8, 8)
    assert torch.allclose(x.double().mean(0), digits.train.double().mean(0), atol=0.6)  # six standard errors
    pair = x.flatten(1)[:, [27, 28]].double().mT
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.08
    assert float(torch.corrcoef(digits.train.flatten(1)[:, [27, 28]].double().mT)[0, 1]) > 0.2


def test_gaussian_by_scipy():
    images, s = toy((2, 2, 2), levels=5), 0.3
    y = (images.train.flatten(1).double().numpy() + 0.5) / 5
    cov = np.cov(y.T, bias=True) + np.eye(8) / 300
    cov = (1 - s) * cov + s * np.diag(np.diag(cov))
    gaussian, x = Gaussian(images, s), unit_points(images)
    close(gaussian.log_prob(x), multivariate_normal(y.mean(0), cov).logpdf(x.flatten(1).numpy()))
    close(gaussian.covariance, cov)
    noisy = images.dequantise(images.train.repeat(4000, 1, 1, 1), torch.Generator().manual_seed(0)).flatten(1)
    close(noisy.var(0), Gaussian(images, 1.0).covariance.diagonal(), rtol=0.01, atol=0)


def test_copula_by_scipy():
    images, s = toy((1, 2, 2)), 0.2
    copula, x = GaussianCopula(images, s), unit_points(images)
    probs = copula.pixels.probs.numpy()
    edges = np.arange(5) / 4

    def latent(points):
        cdfs = [np.concatenate([[0], p.cumsum()]) for p in probs]
        return norm.ppf(np.stack([np.interp(points[:, d], edges, cdfs[d]) for d in range(4)], 1))

    noisy = images.dequantise(images.train.repeat(3000, 1, 1, 1), torch.Generator().manual_seed(0)).flatten(1).numpy()
    z = latent(noisy)
    cov = np.cov(z.T, bias=True)
    cov = (1 - s) * cov + s * np.diag(np.diag(cov))
    close(copula.mean, z.mean(0), 0, 0.01)
    close(copula.covariance, cov, 0, 0.02)
    points = x.flatten(1).numpy()
    z, cells = latent(points), (points * 4).astype(int)
    want = sum(np.log(4 * probs[d][cells[:, d]]) for d in range(4)) - norm.logpdf(z).sum(1)
    want += multivariate_normal(copula.mean.numpy(), copula.covariance.numpy()).logpdf(z)
    close(copula.log_prob(x), want)


@pytest.mark.parametrize("p", [PSM, OTFlow(), VE(0.01, 5.0)], ids=["VP", "OTFlow", "VE"])
def test_kernel_density_by_sklearn(p):
    images, t = toy((1, 2, 3)), 0.3
    bandwidth = float(p.sigma(t) / p.alpha(t))
    middles = (images.train.flatten(1).double().numpy() + 0.5) / 4
    other = SklearnKernelDensity(bandwidth=bandwidth, rtol=1e-12).fit(middles)
    x = unit_points(images)
    close(KernelDensity(images, t, process=p).log_prob(x), other.score_samples(x.flatten(1).numpy()), 1e-9, 1e-9)


@pytest.mark.parametrize("kind", REFERENCES[1:])
def test_the_number_chosen_is_the_best_on_validation(kind):
    images = load("digits")
    chosen = kind(images)
    x = images.dequantise(images.validation, torch.Generator().manual_seed(0))
    names = {IndependentPixels: "smoothing", KernelDensity: "t"}
    value = getattr(chosen, names.get(kind, "shrinkage"))
    assert f"{value:.2g}" in chosen.setting
    best = float(chosen.log_prob(x).mean())
    for other in (0.25 * value, 0.7 * value, 1.4 * value, 4 * value):
        assert best > float(kind(images, other).log_prob(x).mean()) - 1e-3


def test_a_figure_on_digits_and_its_error():
    images = load("digits")
    rows = {row["reference"]: row for row in references(images, draws=2, limit=200)}
    assert list(rows) == [kind.name for kind in REFERENCES]
    assert rows["uniform"]["test"] == pytest.approx(math.log2(17), abs=1e-12)
    bits = Gaussian(images).bits_per_dim(subsample(images.test, 200), torch.Generator().manual_seed(1), 2)
    assert rows["Gaussian"]["test"] == pytest.approx(float(bits.mean()), abs=1e-12)
    assert rows["Gaussian"]["test_stderr"] == pytest.approx(float(bits.std()) / 200**0.5, rel=1e-9)
    order = sorted(rows, key=lambda name: rows[name]["test"])
    assert order == ["Gaussian copula", "independent pixels", "Gaussian", "kernel density", "uniform"]
    # every training image is a kernel's centre
    assert rows["kernel density"]["train"] < rows["kernel density"]["test"] - 0.5


def test_mirror_images_are_training_images():
    images, plain = toy((1, 2, 3), flip=True), toy((1, 2, 3))
    assert len(training_images(images)) == 120 and torch.equal(training_images(images)[60:], plain.train.flip(-1))
    x = unit_points(images)
    for kind in REFERENCES:
        reference = kind(images)
        close(reference.log_prob(x.flip(-1)), reference.log_prob(x), 1e-8, 1e-8)
    assert not torch.allclose(Gaussian(plain).log_prob(x.flip(-1)), Gaussian(plain).log_prob(x))


def test_single_precision_and_flat_points():
    images = toy((1, 2, 3))
    x = unit_points(images).float()
    for kind in REFERENCES:
        found = kind(images).log_prob(x)
        assert found.dtype == torch.float32
        close(found.double(), kind(images).log_prob(x.double().flatten(1)), 1e-4, 1e-4)


def test_thinning():
    assert subsample(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert subsample(torch.arange(3), 4).tolist() == [0, 1, 2]
