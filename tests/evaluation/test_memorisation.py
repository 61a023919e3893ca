"""Memorisation: nearest images by brute force, proportions, and posteriors by Bayes' rule and by calibration."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from psmlib.data.images import Images, load
from psmlib.evaluation import memorisation as module
from psmlib.evaluation.memorisation import memorisation, nearest, top_weights
from psmlib.exact.dequantised import DequantisedData
from psmlib.exact.finite_set import DiffusedData
from psmlib.process import VE, VP

F64 = torch.float64
PSM = VP(0.0, 10.0)
DIGITS = load("digits")


def toy(train, test=None, levels=256, flip=False):
    test = train if test is None else test
    return Images("toy", {"train": train, "validation": test, "test": test}, levels=levels, flip=flip)


def random_levels(n, shape=(3, 4, 4), seed=0, levels=256):
    return np.random.default_rng(seed).integers(levels, size=(n, *shape)).astype(np.uint8)


@pytest.mark.parametrize("numbers", [50, 2**22])
def test_nearest_by_brute_force(numbers, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_SIZE", numbers)
    x, data = random_levels(20), random_levels(40, seed=1)
    data[7] = x[3]
    want = np.sqrt(((x[:, None].astype(float) - data) ** 2).sum((2, 3, 4))) / 256
    distance, index = nearest(torch.from_numpy(x), torch.from_numpy(data), 256, k=3)
    np.testing.assert_allclose(distance.numpy(), np.sort(want, 1)[:, :3], rtol=1e-13)
    np.testing.assert_array_equal(index[:, 0].numpy(), want.argmin(1))
    assert distance[3, 0] == 0 and index[3, 0] == 7


def test_equal_images_are_at_distance_zero_whatever_their_size():
    big = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)  # 8e8, more than single precision holds exactly
    near = big.clone()
    near[0, 0, 0, 0] = 254
    distance, index = nearest(big, torch.cat([near, big]), 256)
    assert distance.tolist() == [[0.0, 1 / 256]] and index.tolist() == [[1, 0]]


def test_copies_are_found_and_others_are_not():
    g = torch.Generator().manual_seed(0)
    copies = DIGITS.quantise(DIGITS.dequantise(DIGITS.train[100:160], g))  # as a model that knows them by heart draws
    found = memorisation(copies, DIGITS)
    assert found.samples.copies == found.samples.exact == found.closer == 1
    assert found.nearest_index.tolist() == list(range(100, 160)) and bool((found.distances == 0).all())
    assert found.test.copies == 0 == found.test.exact and 0.8 < found.test.ratio < 1
    mixed = memorisation(torch.cat([copies[:30], DIGITS.validation[:90]]), DIGITS)
    assert mixed.samples.copies == 0.25 and mixed.samples.n == 120
    others = memorisation(DIGITS.validation, DIGITS)
    assert others.samples.copies == others.samples.copies_stderr == 0 and others.samples.copies_high < 0.03
    assert abs(others.closer - 0.5) < 3 * others.closer_stderr
    # with a little noise they are not exact, and are copies still
    noise = torch.from_numpy(np.random.default_rng(0).integers(-1, 2, size=tuple(copies.shape)))
    blurred_levels = (copies.long() + noise).clamp(0, 16).to(torch.uint8)
    blurred = memorisation(blurred_levels, DIGITS)
    assert blurred.samples.exact == 0 and blurred.samples.copies > 0.5 and blurred.closer > 0.99
    assert memorisation(blurred_levels, DIGITS, limit=0.1).samples.copies < 0.1


def test_the_figures_by_brute_force():
    images = toy(random_levels(50, (1, 2, 2), levels=9), random_levels(30, (1, 2, 2), 1, 9), levels=9)
    x = torch.from_numpy(random_levels(40, (1, 2, 2), 2, 9))
    found = memorisation(x, images, limit=0.8)
    data = np.unique(images.train.flatten(1).numpy(), axis=0).astype(float)
    gaps = [np.sqrt(((a.flatten(1).numpy()[:, None] - data) ** 2).sum(2)) / 9 for a in (x, images.test)]
    for gap, part in zip(gaps, (found.samples, found.test), strict=True):
        near = np.sort(gap, 1)
        ratio, n = near[:, 0] / near[:, 1], len(gap)
        assert part.distance == pytest.approx(near[:, 0].mean())
        assert part.distance_stderr == pytest.approx(near[:, 0].std(ddof=1) / n**0.5)
        assert part.ratio == pytest.approx(float(torch.from_numpy(ratio).median()))
        share = (ratio < 0.8).mean()
        assert 0 < share < 1 and part.copies == pytest.approx(share)
        assert part.copies_stderr == pytest.approx((share * (1 - share) / n) ** 0.5)
        assert part.copies_low < share < part.copies_high
        assert part.exact == pytest.approx((near[:, 0] == 0).mean())
    u = mannwhitneyu(gaps[1].min(1), gaps[0].min(1)).statistic
    assert found.closer == pytest.approx(u / (40 * 30))
    np.testing.assert_allclose(found.distances.numpy(), gaps[0].min(1))
    rows = images.train[found.nearest_index].flatten(1).numpy().astype(float)
    np.testing.assert_allclose(np.sqrt(((x.flatten(1).numpy() - rows) ** 2).sum(1)) / 9, found.distances.numpy())


def test_the_error_of_closer_is_that_of_repeated_draws():
    train = random_levels(60, (1, 3, 3))
    found = []
    for seed in range(150):
        x, y = random_levels(25, (1, 3, 3), 1000 + seed), random_levels(40, (1, 3, 3), 5000 + seed)
        found.append(memorisation(torch.from_numpy(x), toy(train, y)))
    values = np.array([f.closer for f in found])
    stderr = np.mean([f.closer_stderr for f in found])
    assert abs(values.mean() - 0.5) < 4 * values.std() / 150**0.5
    assert stderr == pytest.approx(values.std(), rel=0.25)


def test_twice_the_same_training_image_and_mirror_images():
    train = random_levels(30)
    train[5] = train[11] = train[20]
    found = memorisation(torch.from_numpy(train[[20, 20, 3]]), toy(train))
    assert found.samples.copies == 1 and found.nearest_index.tolist() == [5, 5, 3]
    mirrored = torch.from_numpy(train[:10, ..., ::-1].copy())
    assert memorisation(mirrored, toy(train)).samples.copies == 0
    assert memorisation(mirrored, toy(train, flip=True)).samples.exact == 1
    assert memorisation(mirrored, toy(train, flip=True)).nearest_index.tolist() == [
        30,
        31,
        32,
        33,
        34,
        35,
        *range(36, 40),
    ]


# top weights


def test_top_weights_by_bayes():
    data = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x0 = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    times = [0.1, 0.5, 1.0]
    for row, t in zip(top_weights(DiffusedData(data, PSM), x0, times, seed=4), times, strict=True):
        eps = torch.randn(50, 3, generator=torch.Generator().manual_seed(4), dtype=F64)
        x = float(PSM.alpha(t)) * x0 + float(PSM.sigma(t)) * eps
        weight = torch.softmax(-torch.cdist(x, float(PSM.alpha(t)) * data).square() / 2 / float(PSM.sigma(t)) ** 2, 1)
        top = weight.amax(1)
        assert row.t == t and row.own is None
        assert row.mean == pytest.approx(float(top.mean()), rel=1e-9)
        assert row.stderr == pytest.approx(float(top.std()) / 50**0.5, rel=1e-9)
        share = float((top > 0.5).double().mean())
        assert row.decided == pytest.approx(share)
        assert row.decided_stderr == pytest.approx((share * (1 - share) / 50) ** 0.5)


@pytest.mark.parametrize("law", [DiffusedData, DequantisedData])
def test_the_top_weight_of_training_images_is_how_often_it_is_right(law):
    draws = DIGITS.draws(centred=True)
    score = DiffusedData(draws.middles(), PSM) if law is DiffusedData else draws.diffused(PSM)
    rows, g = torch.arange(0, 1258, 3), torch.Generator().manual_seed(0)
    x0 = DIGITS.dequantise(DIGITS.train[rows], g, centred=True)
    new = DIGITS.dequantise(DIGITS.test, g, centred=True)
    times = [0.1, 0.2, 0.4]
    trained, tested = top_weights(score, x0, times, own=rows, seed=1), top_weights(score, new, times, seed=1)
    for row in trained:
        assert abs(row.own - row.mean) < 4 * (row.own * (1 - row.own) / len(rows)) ** 0.5
    for a, b in zip(trained[:2], tested[:2], strict=True):  # a new image is decided about less
        assert a.mean - b.mean > 3 * (a.stderr**2 + b.stderr**2) ** 0.5
    assert [r.mean for r in trained] == sorted((r.mean for r in trained), reverse=True)
    assert trained[2].mean < 0.06 and tested[2].decided == 0


def test_single_precision_weights():
    data = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    single = top_weights(DiffusedData(data, VE(0.01, 5.0)), data.double(), [0.3])[0]  # in the law's own precision
    double = top_weights(DiffusedData(data.double(), VE(0.01, 5.0)), data, [0.3])[0]
    assert single.mean == pytest.approx(double.mean, rel=1e-4)


def test_bad_input():
    good = torch.from_numpy(random_levels(4))
    for x, match in (
        (good.double(), r"got torch.float64 \(4, 3, 4, 4\) .* use images.quantise on the samples"),
        (good[:, :1], r"nearest compares whole levels of one shape"),
        (good[:1], "memorisation needs two samples or more for its standard errors, got 1"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            memorisation(x, toy(random_levels(4)))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there are 4 images to be near to: ask for 1 to 4, not 5"):
        nearest(good, good, 256, k=5)
