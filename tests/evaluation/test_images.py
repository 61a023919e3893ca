"""Likelihoods of images under a protocol, compared with Gaussians and discrete laws in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from psmlib.data.images import Images, load
from psmlib.evaluation.images import ImageProtocol, bits, inputs, undithered_offset, whole_levels
from psmlib.exact.finite_set import DiffusedData
from psmlib.process import VP
from psmlib.score import Score
from psmlib.standard_errors import difference

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
P = VP(0.0, 40.0)  # nothing is left of the data at t = 1, so the prior is the law of x_T
LEVELS, D = 5, 4


def pictures(n_test: int = 300) -> Images:
    """Images of 2x2 values with levels 0..4, related in some way."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, LEVELS, (400 + n_test, 1, 1, 1))
    made = np.clip(base + rng.integers(-1, 2, (400 + n_test, 1, 2, 2)), 0, LEVELS - 1).astype(np.uint8)
    return Images("made up", {"train": made[n_test:], "test": made[:n_test]}, levels=LEVELS, cut=50)


IMAGES = pictures()
FINE = ImageProtocol(steps=80, divergence="exact", t0=1e-3)
SEEN = inputs(IMAGES, FINE).flatten(1)
MEAN, COV = SEEN.mean(0), torch.cov(SEEN.T, correction=0)  # so that averages over the images are those over this law


DATA = MultivariateNormal(MEAN, COV)


class Gaussian(Score):
    """The exact score of such data."""

    process = P

    def law(self, t: float) -> MultivariateNormal:
        alpha, sigma = P.alpha(t), P.sigma(t)
        return MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * torch.eye(D, dtype=F64))

    def predict_jacobian(self, x, t):
        law = self.law(t)
        gain = P.sigma(t) * law.precision_matrix
        return ((x.flatten(1) - law.mean) @ gain).reshape(x.shape), gain.expand(len(x), D, D)

    def predict(self, x, t):
        return self.predict_jacobian(x, t)[0]


def in_bits(log_prob: Tensor) -> Tensor:
    return -log_prob / (D * math.log(2)) + math.log2(LEVELS)


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Where an image is fed in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_images_themselves_have_the_density_of_the_start(divergence):
    for t0 in (1e-3, 0.05):
        protocol = FINE.but(t0=t0, divergence=divergence)
        found, wanted = bits(Gaussian(), P, IMAGES, protocol), in_bits(Gaussian().law(t0).log_prob(SEEN))
        assert found.shape == (300,) and found.dtype == F64
        if divergence == "exact":
            close(found, wanted)
        else:
            error, spread = float((found - wanted).mean()), float((found - wanted).std())
            assert spread > 1e-3 and abs(error) < 4 * spread / 300**0.5


def bound(x: Tensor, t0: float) -> Tensor:
    """E log p_t0(alpha x + sigma eps) + D log alpha, in closed form. Shape: (n,)."""
    alpha, sigma, law = P.alpha(t0), P.sigma(t0), Gaussian().law(t0)
    return law.log_prob(alpha * x) - 0.5 * sigma**2 * law.precision_matrix.trace() + D * alpha.log()


@pytest.mark.parametrize("t0", [1e-3, 0.02, 0.1])
def test_a_noised_start_bounds_the_likelihood_of_the_data(t0):
    found, exact = bits(Gaussian(), P, IMAGES, FINE.but(t0=t0, start="noised")), in_bits(DATA.log_prob(SEEN))
    expected, gap = in_bits(bound(SEEN, t0)), found - in_bits(bound(SEEN, t0))
    error = float(gap.std()) / 300**0.5
    assert abs(float(gap.mean())) < 4 * error, "one draw of the noise stands for its expectation"
    # image by image it bounds what the decoder makes of x_t0, whose noise it adds to that of the path
    wider = COV + 2 * (P.sigma(t0) / P.alpha(t0)) ** 2 * torch.eye(D, dtype=F64)
    assert bool((expected > in_bits(MultivariateNormal(MEAN, wider).log_prob(SEEN))).all())
    loss = float(found.mean() - exact.mean())
    assert float(expected.mean()) > float(exact.mean()) and loss > -4 * error
    assert loss < 0.01 if t0 == 1e-3 else loss > 0.05
    # what is measured is the density of the noised images, with the same noise for every method
    eps = torch.randn(300, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(FINE.seed + 1)).flatten(1)
    fed = P.alpha(t0) * SEEN + P.sigma(t0) * eps
    close(found, in_bits(Gaussian().law(t0).log_prob(fed) + D * P.alpha(t0).log()))


def test_a_start_without_noise_is_no_bound():
    """The density of x_t0 at an image itself lies above that of the data, wherever those are rare."""
    found, exact = bits(Gaussian(), P, IMAGES, FINE.but(t0=0.02)), in_bits(DATA.log_prob(SEEN))
    assert float((found < exact - 0.01).double().mean()) > 0.1


# Inputs -----------------------------------------------------------------------------------------------------


def test_inputs_are_dequantised_and_centred_alike_for_every_method():
    for split in ("train", "validation", "test"):
        levels = getattr(IMAGES, split)[:7]
        x = inputs(IMAGES, FINE.but(images=7), split) + IMAGES.centre
        assert x.shape == (7, 1, 2, 2) and x.dtype == F64
        noise = LEVELS * x - levels
        assert bool((noise >= 0).all() and (noise < 1).all()) and float(noise.std()) > 0.1
    assert torch.equal(inputs(IMAGES, FINE), inputs(IMAGES, FINE.but(t0=0.1, start="noised", steps=3)))
    assert not torch.equal(inputs(IMAGES, FINE), inputs(IMAGES, FINE.but(seed=1)))


@pytest.mark.parametrize("name", ["made up", "digits"])
def test_whole_levels_are_those_of_the_released_code(name):
    images = IMAGES if name == "made up" else load("digits")
    top = images.levels - 1
    wanted = images.test.numpy() / top - (images.train.numpy() / top).mean(0)
    found = inputs(images, FINE.but(dequantised=False))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)
    assert torch.equal(found, whole_levels(images, images.test))


def test_the_seed_gives_one_noise_and_one_probe():
    fixed = FINE.but(steps=3, divergence="hutchinson", images=5)
    first, again, other = (bits(Gaussian(), P, IMAGES, fixed.but(seed=s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    fresh = bits(Gaussian(), P, IMAGES, fixed.but(seed=3, fresh_probes=True))
    assert not torch.allclose(fresh, first) and len(fresh) == 5
    assert torch.equal(fresh, bits(Gaussian(), P, IMAGES, fixed.but(seed=3, fresh_probes=True)))


# Without dequantisation -------------------------------------------------------------------------------------


def bells(probs: Tensor, t0: float) -> Tensor:
    """Bits of each level of a pixel under the exact law of x_t0, fed in whole. Shape: (K,) -> (K,)."""
    K = len(probs)
    level = torch.arange(K, dtype=F64) / (K - 1)
    alpha, sigma = P.alpha(t0), P.sigma(t0)
    log_bell = -0.5 * ((level[:, None] - alpha * level) / sigma).square() - math.log(math.sqrt(2 * math.pi) * sigma)
    return -torch.logsumexp(log_bell + probs.log(), 1) / math.log(2) + math.log2(K)


@pytest.mark.parametrize("K", [3, 17, 256])
@pytest.mark.parametrize("t0", [1e-5, 1e-4, 1e-3, 1e-2, 0.1])
def test_the_offset_of_whole_levels_is_exact_for_narrow_bells_and_a_bound_for_wide_ones(K, t0):
    """For independent pixels the bits per dimension are the mean over pixels of this."""
    probs = torch.rand(K, dtype=F64, generator=torch.Generator().manual_seed(K)) + 0.1
    probs = probs / probs.sum()
    added = bells(probs, t0) + probs.log2()
    offset, overlap = undithered_offset(P, K, t0), float(P.sigma(t0)) * (K - 1)
    assert float(added.max()) < offset + 1e-3
    if overlap < 0.15:
        close(added, torch.full((K,), offset, dtype=F64), atol=1e-3)
    if overlap > 0.5:
        assert float(added.mean()) < offset - 0.3


@pytest.mark.parametrize("K, t0", [(17, 1e-3), (17, 1e-2), (256, 1e-4), (256, 3e-4), (256, 1e-3)])
def test_the_offset_where_levels_are_alike(K, t0):
    """Away from the ends, with P = 1/K for all; the shift from x to alpha x is all that is left out."""
    middle = slice(K // 3, 2 * K // 3)
    added = bells(torch.full((K,), 1 / K, dtype=F64), t0)[middle] - math.log2(K)
    close(added, torch.full_like(added, undithered_offset(P, K, t0, alike=True)), atol=2e-3)


def test_the_released_start_is_narrow_for_17_levels_and_wide_for_256():
    """There 17 levels are given for nearly nothing, while 256 that are like their neighbours cost what they should."""
    p = VP(0.0, 10.0)
    narrow = undithered_offset(p, 17, 1e-3)
    assert narrow < -3 and undithered_offset(p, 17, 1e-3, alike=True) == pytest.approx(narrow)
    assert undithered_offset(p, 256, 1e-3) > 0.5 and abs(undithered_offset(p, 256, 1e-3, alike=True)) < 0.01


def test_a_model_of_the_levels_has_their_entropy_and_the_offset():
    """The exact law of the training levels, measured as the released code does but with an accurate solver."""
    seen = whole_levels(IMAGES, IMAGES.train)
    rows, counts = IMAGES.train.flatten(1).unique(dim=0, return_counts=True)
    score, protocol = DiffusedData(seen, P), FINE.released.but(grid="warped", steps=250, images=3, divergence="exact")
    found = bits(score, P, IMAGES, protocol, "train")
    place = (IMAGES.train[:3].flatten(1)[:, None] == rows).all(2).double().argmax(1)
    log_probs = (counts[place] / len(IMAGES.train)).log2()
    close(found, -log_probs.double() / D + undithered_offset(P, LEVELS, 1e-3), atol=2e-3)
    assert float(found.max()) < 0, "negative bits: no code of levels has such a length"


# Comparisons ------------------------------------------------------------------------------------------------


def test_a_difference_is_paired():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=(1, 500))  # images differ far more than methods do
    a, b = hard + 0.1 + 0.05 * rng.normal(size=(1, 500)), hard + 0.05 * rng.normal(size=(1, 500))
    mean, error = difference(torch.from_numpy(a), torch.from_numpy(b))
    gap = (a - b)[0]
    assert mean == pytest.approx(gap.mean()) and error == pytest.approx(gap.std(ddof=1) / 500**0.5)
    assert error < 0.1 * a.std() / 500**0.5 and abs(mean - 0.1) < 4 * error


def test_the_error_of_a_difference_covers_images_and_seeds():
    """Over many repetitions: it is the spread of the mean, or more where image and seed act together."""
    rng, S, n = np.random.default_rng(2), 6, 40
    for of_images, of_seeds, of_both in itertools.product((0.3, 1.0), (0.1, 0.4), (0.0, 0.5)):
        effects = of_images * rng.normal(size=(400, 1, n)) + of_seeds * rng.normal(size=(400, S, 1))
        gaps = torch.from_numpy(effects + of_both * rng.normal(size=(400, S, n)))
        found = np.array([difference(gap, torch.zeros_like(gap)) for gap in gaps])
        spread, told = found[:, 0].std(), np.sqrt((found[:, 1] ** 2).mean())
        assert 0.85 < told / spread < (1.15 if not of_both else 1.35)
    gap = gaps[0].numpy()
    by_hand = gap.mean(0).var(ddof=1) / n + gap.mean(1).var(ddof=1) / S
    assert found[0][1] == pytest.approx(by_hand**0.5)
    one_seed = difference(gaps[0], torch.zeros(1, n, dtype=F64))
    assert one_seed == pytest.approx(found[0]), "a method without a seed is compared with each"


# Protocols --------------------------------------------------------------------------------------------------


def test_protocols_are_told_changed_and_compared():
    ours = ImageProtocol()
    assert str(ours) == (
        "t0 = 0.001, rk4 with 20 warped steps, one fixed probe, dequantised, no reconstruction term, all images"
    )
    other = ours.but(start="noised", divergence="exact", t0=1e-4, images=50)
    assert str(other) == (
        "t0 = 0.0001, rk4 with 20 warped steps, exact trace, dequantised, noised start with reconstruction, 50 images"
    )
    assert other.but(t0=1e-3, start="data", divergence="hutchinson", images=None) == ours != other
    for protocol in (ours, other):
        released = protocol.but(steps=900).released
        assert str(released).startswith("t0 = 0.001, rk4 with 900 blocks steps, fresh probes, not dequantised, no rec")
        assert (released.divergence, released.start, released.images) == ("hutchinson", "data", protocol.images)
        assert released.released == released


class Broken(Gaussian):
    """A network that was not trained to the end."""

    def predict_jacobian(self, x, t):
        value, jac = super().predict_jacobian(x, t)
        return value + torch.where(torch.arange(len(x)) < 2, math.nan, 0.0)[:, None, None, None], jac


@pytest.mark.parametrize(
    "call, culprit",
    [
        (lambda: ImageProtocol(start="image"), "unknown start 'image' of a protocol: use one of data, noised"),
        (lambda: ImageProtocol(images=0), "images must be a positive number or None for all of a split, got 0"),
        (lambda: inputs(IMAGES, FINE, "tset"), "unknown split 'tset' of made up: use one of train, validation, test"),
        (lambda: bits(Gaussian(), P, IMAGES, FINE, "all"), "unknown split 'all'"),
        (lambda: bits(Gaussian(), P, IMAGES, FINE.but(method="rk5")), "unknown method 'rk5'"),
        (lambda: bits(Broken(), P, IMAGES, FINE.but(images=9)), "2 of 9 likelihoods are not finite: train longer"),
        (lambda: difference(torch.zeros(5), torch.zeros(5)), r"table of shape \(seeds, n\), n at least 2, got \(5,\)"),
        (lambda: difference(torch.zeros(5, 1), torch.zeros(5, 1)), r"n at least 2, got \(5, 1\)"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, culprit):
    with pytest.raises(ValueError, match=culprit) as error:
        call()
    assert "\n" not in str(error.value) and ". " not in str(error.value)
