"""Sample quality: each metric compared with an independent formula, and its invariances."""

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_kid import kid_features_to_metric

from psmlib.data.images import load
from psmlib.evaluation import feature_extractors
from psmlib.evaluation.digit_classifier import to_bytes
from psmlib.evaluation.feature_extractors import METRICS, NAME, DigitsExtractor
from psmlib.evaluation.sample_quality import SampleQuality, over_seeds, real_images, sample_quality

DIGITS = load("digits")
TRAIN, TEST = DIGITS.train, DIGITS.test
REST = torch.cat([DIGITS.validation, TEST])


def features(levels: torch.Tensor) -> np.ndarray:
    return DigitsExtractor(NAME, ["penultimate"])(to_bytes(levels, 17))[0].numpy()


def noisy(n: int, by: float, seed: int) -> torch.Tensor:
    """Digits with Gaussian noise of so many levels."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(TRAIN), (n,), generator=generator)
    return (TRAIN[rows] + by * torch.randn(n, 1, 8, 8, generator=generator)).round().clamp(0, 16).to(torch.uint8)


def figure(samples, reference, metric, **settings) -> float:
    return sample_quality(samples, reference, metrics=metric, repeats=2, **settings).value[metric]


def by_roots(x: np.ndarray, y: np.ndarray) -> float:
    """The closed form for Gaussians, by a matrix square root."""
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)


def by_singular_values(x: np.ndarray, y: np.ndarray) -> float:
    """The same where covariances are singular: tr (A'A B'B)^1/2 is the sum of the singular values of A B'."""
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * cross


def test_frechet_distance_is_the_closed_form():
    for samples in (TRAIN[:300], noisy(250, 3, 0)):
        assert figure(samples, TEST, "fd") == pytest.approx(by_roots(features(samples), features(TEST)), rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(8, 8), (8, 359), (40, 30), (64, 65)])
def test_frechet_distance_of_fewer_images_than_features_is_right(n, m):
    samples, reference = noisy(n, 2, n), TEST[:m]
    truth = by_singular_values(features(samples), features(reference))
    found = sample_quality(samples, reference, metrics="fd")
    assert found.value["fd"] == pytest.approx(truth, rel=1e-5) and 0 < found.stderr["fd"] < truth


def test_the_same_images_on_both_sides():
    for images in (TEST, TEST[:20], TEST[:10].repeat(3, 1, 1, 1)):
        same = sample_quality(images, images, repeats=2).value
        assert abs(same["fd"]) < 1e-5 and same["precision"] == same["recall"] == 1


def test_kid_is_the_plain_sum_over_pairs():
    samples, reference = noisy(23, 2, 0), TEST[:31]
    x, y = features(samples), features(reference)

    def k(a, b):
        return (a @ b / 64 + 1) ** 3

    own = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    plain = sum(own) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert figure(samples, reference, "kid") == pytest.approx(plain, rel=1e-10)


def test_kid_in_pieces_is_kid_at_once():
    x, y = (torch.from_numpy(features(z)) for z in (TRAIN, REST))  # more than one piece of 1024
    kxx, kyy, kxy = ((a @ b.T / 64 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    plain = (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1)) - 2 * kxy.mean()
    assert figure(TRAIN, REST, "kid") == pytest.approx(float(plain), rel=1e-9)


def test_kid_is_what_torch_fidelity_estimates():
    samples = noisy(150, 2, 0)
    x, y = torch.from_numpy(features(samples)), torch.from_numpy(features(TEST[:150]))
    ours = figure(samples, TEST[:150], "kid")
    whole = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=150, verbose=False)
    assert ours == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-9)
    parts = kid_features_to_metric(x, y, kid_subsets=200, kid_subset_size=50, verbose=False)
    mean, spread = (parts[f"kernel_inception_distance_{k}"] for k in ("mean", "std"))
    assert abs(ours - mean) < 4 * spread / 200**0.5


def test_kid_of_real_images_is_zero_on_average():
    pool = torch.cat([TRAIN, REST])  # not by split, which shares out the classes more evenly than chance
    for n, m in ((40, 40), (30, 200)):
        found = real_images(pool, n, m, metrics="kid", repeats=100)
        assert abs(found.value["kid"]) < 4 * found.stderr["kid"] / 100**0.5


def test_a_collapsed_sample_has_precision_but_no_recall():
    zeros = TRAIN[DIGITS.train_labels == 0]
    value = sample_quality(zeros, TEST, metrics=("is", "precision", "recall"), repeats=2).value
    assert value["precision"] > 0.8 and value["recall"] < 0.2 and 1 <= value["is"] < 1.3
    one = sample_quality(TRAIN[:1].repeat(99, 1, 1, 1), TEST, repeats=2).value
    assert one["recall"] < 0.05 and one["is"] == pytest.approx(1) and all(np.isfinite(list(one.values())))


def test_precision_falls_with_samples_that_are_not_digits_and_recall_need_not():
    half = torch.cat([TRAIN[:200], noisy(200, 30, 0)])
    value = sample_quality(half, TEST, metrics=("precision", "recall"), repeats=2).value
    assert value["precision"] < 0.6 and value["recall"] > 0.8


def test_inception_score_is_its_formula_and_lies_between_one_and_ten(monkeypatch):
    logits = DigitsExtractor(NAME, ["logits"])(to_bytes(TRAIN, 17))[0].numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    truth = np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))
    assert figure(TRAIN, TEST, "is") == pytest.approx(truth, rel=1e-9) and 9 < truth < 10
    assert 1 <= figure(noisy(100, 30, 0), TEST, "is") < truth
    # a mean over parts, as for Inception-v3, in each of which the classes are less even
    known = feature_extractors.EXTRACTORS
    monkeypatch.setitem(known, "digits", replace(known["digits"], splits=10))
    assert 0.99 * truth < figure(TRAIN, TEST, "is") < truth


def test_noise_is_far_and_more_noise_is_farther():
    real = figure(REST[:180], TRAIN, "fd")
    near, far = (figure(noisy(180, by, 0), TRAIN, "fd") for by in (2, 4))
    uniform = torch.randint(17, (180, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert real < near < far / 2 and figure(uniform, TRAIN, "fd") > 50 * real
    assert figure(uniform, TRAIN, "kid") > 100 * abs(figure(REST[:180], TRAIN, "kid"))


def test_neither_order_nor_channels_nor_pieces_nor_the_caller_matter():
    samples, reference = noisy(60, 2, 0), TEST[:70]
    first = sample_quality(samples, reference, repeats=10)
    with torch.inference_mode():
        assert sample_quality(samples.flip(0), reference[torch.randperm(70)], repeats=10) == first
    assert sample_quality(*(x.expand(-1, 3, -1, -1) for x in (samples, reference)), repeats=10) == first
    small = sample_quality(samples, reference, repeats=10, batch=7)
    assert small.value == pytest.approx(first.value, rel=1e-6)  # roots of eigenvalues that should be 0
    assert sample_quality(samples, reference, repeats=10, seed=1).stderr["fd"] != first.stderr["fd"]


def test_a_metric_asked_for_alone_is_the_one_asked_for_with_others():
    samples, reference = noisy(60, 2, 0), TEST[:70]
    whole = sample_quality(samples, reference, repeats=20)
    assert tuple(whole.value) == tuple(whole.stderr) == METRICS and (whole.samples, whole.reference) == (60, 70)
    assert min(whole.stderr.values()) > 0
    for metric in METRICS:
        alone = sample_quality(samples, reference, metrics=metric, repeats=20)
        assert alone.value == {metric: whole.value[metric]}
        assert alone.stderr[metric] == pytest.approx(whole.stderr[metric])


def test_standard_errors_are_those_of_fresh_samples():
    side, asked = TEST[:100], ("fd", "kid", "precision")
    figures = [sample_quality(noisy(100, 4, s), side, metrics=asked, repeats=2).value for s in range(4, 64)]
    said = [sample_quality(noisy(100, 4, s), side, metrics=asked).stderr for s in range(4)]
    for metric in asked:
        truth = np.std([f[metric] for f in figures], ddof=1)
        assert 0.75 < np.mean([s[metric] for s in said]) / truth < 1.35


def test_the_distance_of_real_images_falls_as_one_over_n():
    pool = torch.cat([TRAIN, REST])
    few, many = (real_images(pool, n, metrics="fd", repeats=40) for n in (80, 320))
    assert 3 < few.value["fd"] / many.value["fd"] < 5 and (many.samples, many.reference) == (320, 320)
    assert figure(TRAIN[:320], TEST, "fd") < many.value["fd"] + 4 * many.stderr["fd"]


def test_real_images_against_a_fixed_reference():
    found = real_images(TRAIN, 200, TEST, metrics=("fd", "kid"), repeats=40)
    fresh = [sample_quality(TRAIN[torch.randperm(1258, generator=torch.Generator().manual_seed(s))[:200]], TEST,
                            metrics=("fd", "kid"), repeats=2).value for s in range(40)]  # fmt: skip
    for metric in ("fd", "kid"):
        mean, spread = np.mean([f[metric] for f in fresh]), np.std([f[metric] for f in fresh], ddof=1)
        assert abs(found.value[metric] - mean) < 4 * spread / 40**0.5
        assert 0.6 < found.stderr[metric] / (spread / (1 - 200 / 1258) ** 0.5) < 1.6
    assert (found.samples, found.reference) == (200, 359)
    assert real_images(TRAIN.flip(0), 200, TEST, metrics="fd", repeats=3) == real_images(
        TRAIN, 200, TEST, metrics="fd", repeats=3
    )


def test_the_spread_of_real_images_makes_good_for_a_finite_pool():
    found = real_images(TRAIN[:900], 700, TEST[:150], metrics="precision", repeats=60)
    p = found.value["precision"]
    assert 0.7 < found.stderr["precision"] / (p * (1 - p) / 700) ** 0.5 < 1.4


def test_the_spread_of_disjoint_parts_is_that_of_the_draws(monkeypatch):
    monkeypatch.setattr("psmlib.evaluation.sample_quality._metrics", lambda *_: {"fd": np.array([values.pop()])})
    values = [3.0, 1.0]
    found = real_images(TRAIN[:40], 20, metrics="fd", repeats=2)
    assert found.value["fd"] == 2 and found.stderr["fd"] == pytest.approx(2**0.5)


def test_nothing_is_printed_kept_or_drawn_from_the_global_generators(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    sample_quality(TRAIN[:20], TEST[:20], repeats=2)
    real_images(TRAIN[:40], 10, repeats=2)
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert capfd.readouterr() == ("", "") and not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": TRAIN[:20].float()}, "samples must be uint8 levels .* got torch.float32 .*quantise"),
        ({"samples": TRAIN[:20].numpy()}, "samples must be uint8 levels .* got ndarray"),
        ({"reference": TRAIN[0]}, "reference must be uint8 levels"),
        ({"samples": TRAIN[:7]}, "samples must be 8 images or more"),
        ({"samples": TRAIN[:20] + 1}, "samples has level 17 where 17 levels end at 16: give the right number"),
        (
            {"reference": TRAIN[:20].repeat(1, 1, 2, 2)},
            r"differ in height and width \(.*8, 8.*16, 16.*\): give samples",
        ),
        ({k: TRAIN[:20].repeat(1, 2, 1, 1) for k in ("samples", "reference")}, "digits-classifier takes uint8 images"),
        ({"levels": 1}, "levels must lie in 2..256, got 1"),
        ({"extractor": "inception"}, "unknown extractor 'inception': use one of digits, inception-v3-compat"),
        ({"metrics": ("fd", "fid")}, r"unknown metrics \['fid'\]: use some of fd, kid, is, precision, recall"),
        ({"metrics": ()}, "use some of fd"),
        ({"repeats": 1}, "two halves or more, got repeats=1"),
        ({"weights": "x.pth"}, "digits-classifier has weights of its own: leave out x.pth"),
    ],
)
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words) as error:
        sample_quality(**{"samples": TRAIN[:20], "reference": TEST[:20], **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((TRAIN[:50], 26), "pool of 50 images is too small to draw 26 of them and 26 others"),
        ((TRAIN[:50], 7), "too small to draw 7 of them"),
        ((TRAIN[:50], 20, 7), "and 7 others"),
        ((TRAIN[:50], 50, TEST), "too small to draw 50 of them anew each time: use 8 or more"),
        ((TRAIN, 50, TRAIN[:100]), "the reference lies in the pool"),
    ],
)
def test_draws_of_real_images_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        real_images(*arguments)
    with pytest.raises(ValueError, match="two draws or more"):
        real_images(TRAIN, 20, repeats=1)
    assert real_images(TRAIN[:50], 25, metrics="fd", repeats=2).reference == 25  # the very halves
    assert real_images(TRAIN[:50], 49, TEST[:20], metrics="fd", repeats=2).samples == 49


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """A file of Inception-v3's weights, but for their values; small features and images, to be quick."""
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], verbose=False)
    path = tmp_path / feature_extractors.INCEPTION
    torch.save(net.state_dict(), path)
    monkeypatch.setattr(feature_extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    layers = {"isc": "logits_unbiased"}
    monkeypatch.setattr(
        FeatureExtractorInceptionV3, "get_default_feature_layer_for_metric", staticmethod(lambda m: layers.get(m, "64"))
    )
    return path


def test_inception_comes_from_the_readers_file_alone(inception, capfd):
    generator, state = torch.Generator().manual_seed(0), torch.get_rng_state()
    sides = [torch.randint(0, 17, (12, 1, 8, 8), generator=generator, dtype=torch.uint8) for _ in range(2)]
    settings = {"extractor": "inception-v3-compat", "weights": inception, "repeats": 3}
    found = sample_quality(*sides, levels=17, **settings)
    assert torch.equal(state, torch.get_rng_state()) and capfd.readouterr() == ("", "")
    assert found.names["fd"] == "FID" and found.names["kid"] == "KID" and isinstance(found, SampleQuality)
    assert all(np.isfinite(list(found.value.values()))) and found.value["fd"] > 0
    bright = sample_quality(
        *(to_bytes(side, 17).expand(-1, 3, -1, -1) for side in sides), metrics=("fd", "is"), **settings
    )
    assert bright.value == {metric: found.value[metric] for metric in ("fd", "is")}


def test_inception_without_its_file_is_refused_and_not_downloaded(monkeypatch):
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", pytest.fail)
    with pytest.raises(FileNotFoundError, match="needs weights-inception-2015-12-05-6726825d.pth .96 MB.: get it from"):
        sample_quality(TRAIN[:20], TEST[:20], extractor="inception-v3-compat", levels=17)


@pytest.mark.parametrize(("values", "error", "df"), [((1.0, 3.0), 1.0, 1), ((1.9, 2.1), 0.5 / 2**0.5, 2 * 99)])
def test_a_mean_over_networks_has_the_larger_of_two_errors(values, error, df):
    found = over_seeds([SampleQuality("digits", 100, 359, {"fd": v}, {"fd": 0.5}) for v in values], "fd")
    assert found.value == pytest.approx(2.0) and found.stderr == pytest.approx(error)
    assert (found.df, found.n, found.seeds) == (df, 100, 2)
