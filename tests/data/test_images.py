"""Image data sets: fixed splits, scalings, random batches, and the hash that provenance records."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from psmlib.bank.mlp_bank import Bank
from psmlib.book.results import Results
from psmlib.data import archives, images
from psmlib.data.images import Images, load
from psmlib.data.shipped import digits as every_digit
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import fit

SPLITS = ("train", "validation", "test")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def made(n=40, levels=256, flip=True, cut=8, shape=(3, 4, 4), seed=0):
    draw = np.random.default_rng(seed)
    arrays = {split: draw.integers(0, levels, (n, *shape), dtype=np.uint8) for split in ("train", "test")}
    return Images("made", arrays, levels=levels, flip=flip, cut=cut)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


# --- the splits -----------------------------------------------------------------------------------------


def test_digits_and_their_splits_never_change(digits):
    assert digits.sha256 == "b0956eb8f22fe11d9360312fe55c359e6357597bc659973180888387f48c08e6"


def test_every_digit_is_in_one_split_with_its_label(digits):
    pool, labels = every_digit()
    known = {image.tobytes(): int(label) for image, label in zip(pool, labels, strict=True)}
    assert len(known) == 1797  # no digit is twice in the file
    for split in SPLITS:
        rows, found = getattr(digits, split), getattr(digits, f"{split}_labels")
        assert len(rows) == len(found)
        for image, label in zip(rows.numpy(), found.tolist(), strict=True):
            assert known.pop(image.tobytes()) == label
    assert not known


def test_digits_are_split_by_class(digits):
    _, labels = every_digit()
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        counts = np.bincount(getattr(digits, f"{split}_labels"), minlength=10)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1.01
    assert [len(getattr(digits, split)) for split in SPLITS] == [1258, 180, 359]


@pytest.mark.parametrize("name", ["digits", "photos8", "photos16", "photos32"])
def test_what_ships_is_as_the_registry_says(name):
    data, entry = load(name), archives.registry()[name]
    assert data.shape == tuple(entry["shape"]) and data.levels == entry["levels"] and data.about == entry["about"]
    assert data.dim == np.prod(data.shape) and data.name == name
    for split in SPLITS:
        x = getattr(data, split)
        assert x.dtype == torch.uint8 and x.shape[1:] == data.shape and int(x.max()) < data.levels
    assert int(data.train.max()) == data.levels - 1


def test_the_end_of_training_is_kept_for_validation():
    data = made(40, cut=8)
    assert torch.equal(torch.cat([data.train, data.validation]), data.official_train) and len(data.validation) == 8
    assert data.train_labels is data.validation_labels is data.test_labels is None


def test_only_those_with_a_left_and_a_right_are_mirrored():
    flips = {name: entry["flip"] for name, entry in archives.registry().items()}
    assert not flips["digits"] and not flips["mnist"] and flips["cifar10"]
    assert set(flips) == set(images._READERS)


# --- continuous data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, low, high", [("unit", 0, 1), ("symmetric", -1, 1)])
def test_dequantised_data(digits, scale, low, high):
    x = digits.dequantise(digits.test, gen(), scale=scale)
    assert x.dtype == torch.float64 and low <= float(x.min()) and float(x.max()) < high
    assert torch.equal(digits.quantise(x, scale=scale), digits.test)
    assert torch.equal(digits.quantise(x.flatten(1), scale=scale), digits.test)
    centred = digits.dequantise(digits.test, gen(), scale=scale, centred=True)
    assert torch.equal(digits.quantise(centred, scale=scale, centred=True), digits.test)
    assert digits.dequantise(digits.test, gen(), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("scale", ["unit", "symmetric"])
def test_centred_training_data_have_mean_zero(digits, scale):
    many = torch.cat([digits.dequantise(digits.train, gen(i), scale=scale, centred=True) for i in range(20)])
    noise = (1 / 12) ** 0.5 / 17 * (2 if scale == "symmetric" else 1) / len(many) ** 0.5
    assert many.mean(0).abs().max() < 5 * noise  # of the noise alone: the images themselves are all there


def test_the_centre_is_that_of_training_images_alone():
    data = made(40, cut=8)
    want = (data.train.double().mean(0) + 0.5) / 256
    torch.testing.assert_close(data.centre, want, rtol=1e-14, atol=0)
    assert (data.centre - (data.official_train.double().mean(0) + 0.5) / 256).abs().max() > 1e-3


def test_bits_per_dim_of_a_fitted_density(digits):
    """A histogram of each pixel is flat in every level, so its bits are its cross entropy, at any scale."""
    counts = torch.stack([(digits.train == k).sum(0) for k in range(17)]).double() + 1
    p = counts / counts.sum(0)
    cost = -p.log2().gather(0, digits.test.long()).flatten(1).mean(1)
    for scale, width in (("unit", 1), ("symmetric", 2)):
        x = digits.dequantise(digits.test, gen(), scale=scale)
        height = (p * 17 / width).log().gather(0, digits.quantise(x, scale=scale).long())
        torch.testing.assert_close(digits.bits_per_dim(height.flatten(1).sum(1), scale), cost, rtol=1e-12, atol=0)


# --- draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["unit", "symmetric"])
@pytest.mark.parametrize("centred", [True, False])
def test_draws_are_dequantised_training_images(digits, scale, centred):
    draws = digits.draws(scale=scale, centred=centred)
    x = draws.sample(300, gen())
    assert x.shape == (300, 1, 8, 8) and x.dtype == torch.float64
    back = digits.quantise(x, scale=scale, centred=centred)
    pool = {image.tobytes() for image in digits.train.numpy()}
    assert all(image.tobytes() in pool for image in back.numpy())
    assert len({image.tobytes() for image in back.numpy()}) > 200
    assert draws.name == f"digits train {scale}{' centred' * centred}"  # what a checkpoint remembers


def test_draws_are_uniform_over_the_split():
    arrays = {split: np.arange(20, dtype=np.uint8).reshape(-1, 1, 1, 1) for split in ("train", "test")}
    data = Images("made", arrays, levels=20, cut=10)
    seen = np.bincount(data.quantise(data.draws().sample(20_000, gen())).flatten(), minlength=20)
    assert seen[10:].sum() == 0 and stats.chisquare(seen[:10]).pvalue > 1e-3
    late = np.bincount(data.quantise(data.draws("validation").sample(100, gen())).flatten(), minlength=20)
    assert late[:10].sum() == 0


@pytest.mark.parametrize("split, share", [("train", 0.5), ("official_train", 0.5), ("validation", 0), ("test", 0)])
@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_training_images_are_mirrored_and_no_others(split, share, flip):
    data = made(flip=flip)
    pool = {image.tobytes() for image in getattr(data, split).numpy()}
    back = data.quantise(data.draws(split).sample(2000, gen()))
    straight = np.array([image.tobytes() in pool for image in back.numpy()])
    assert all(image.tobytes() in pool for image in back[~straight].flip(-1).contiguous().numpy())
    assert abs(1 - straight.mean() - share * flip) < 4 * (0.25 / 2000) ** 0.5 * bool(share and flip) + 1e-12


def test_fresh_noise_and_a_fixed_stream():
    draws = Images("one", {s: np.full((1, 1, 2, 2), 7, np.uint8) for s in SPLITS}, levels=17).draws()
    x = draws.sample(4000, gen())
    assert stats.kstest((17 * x - 7).flatten().numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(x, draws.sample(4000, gen())) and not torch.equal(x, draws.sample(4000, gen(1)))


def test_draws_train_a_bank(digits):
    draws = digits.draws(scale="symmetric", centred=True, flat=True)
    assert draws.dim == 64 and draws.sample(3).shape == (3, 64)
    bank = Bank(Plain(dim=64, hidden=(32,)), 1)
    losses = [p.loss for p in fit(bank, draws, VP(0.0, 10.0), Partition([0, 1]), updates=150, batch_size=32)]
    assert float(losses[-1]) < float(losses[0])


# --- provenance, laziness, errors -----------------------------------------------------------------------


def test_the_word_for_the_data_sees_every_split_and_label():
    draw = np.random.default_rng(0)
    arrays = {s: draw.integers(0, 17, (6, 1, 2, 2), dtype=np.uint8) for s in SPLITS}
    arrays |= {f"{s}_labels": draw.integers(0, 5, 6) for s in SPLITS}
    words = {Images("a", arrays, levels=17).sha256}
    for key in arrays:
        changed = {k: v.copy() for k, v in arrays.items()}
        changed[key].reshape(-1)[-1] += 1
        words.add(Images("a", changed, levels=17).sha256)
    words.add(Images("a", arrays | {"train": arrays["test"], "test": arrays["train"]}, levels=17).sha256)
    words.add(Images("a", {s: arrays[s] for s in SPLITS}, levels=17).sha256)
    assert len(words) == 9


def test_results_record_the_same_word(digits):
    results = Results("x", "smoke")
    assert results.data_hash(digits.name, digits.fingerprint) == digits.sha256


def test_loading_is_quick_and_imports_little():
    code = (
        "import sys, time; from psmlib.data.images import load\n"
        "assert 'numpy' in sys.modules and not {'torchvision', 'PIL', 'sklearn'} & set(sys.modules)\n"
        "start = time.process_time(); load('digits'); assert time.process_time() - start < .5\n"
        "assert not {'torchvision', 'PIL', 'sklearn'} & set(sys.modules)\n"
        "load('photos32'); assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_set_is_read_once(digits, monkeypatch):
    assert load("digits") is digits and load("digits", download=True) is digits


def test_a_registry_that_disagrees_is_told(raw):
    raw.entries["digits"]["shape"] = [1, 28, 28]
    with pytest.raises(ValueError, match=r"digits has images of shape \(1, 8, 8\) instead of \(1, 28, 28\)"):
        load("digits")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: load("digitz"), "unknown data set 'digitz': use one of digits, photos8, .*, mnist, .*imagenet64$"),
        (lambda: load("TY"), "unknown data set 'TY'"),
        (lambda: made().draws("all"), "unknown split 'all' of made: use one of train, validation, test, official"),
        (lambda: made().draws(scale="x"), "unknown scale 'x'"),
        (lambda: made().dequantise(made().centre), "takes whole levels 0..255"),
        (lambda: made(cut=40), "made has an empty split: keep fewer than 40"),
        (lambda: made(cut=41), "made has an empty split"),
        (lambda: made(cut=0), "made has an empty split"),
        (lambda: Images("a", {s: np.zeros((2, 4, 4), np.uint8) for s in SPLITS}, levels=2), "a must be uint8 .n, C"),
        (lambda: Images("a", {s: np.zeros((2, 1, 4, 4)) for s in SPLITS}, levels=2), "must be uint8 .* float64"),
        (
            lambda: Images("a", {s: np.zeros((2, 1, 4, 4 + (s == "test")), np.uint8) for s in SPLITS}, levels=2),
            "splits of a have images of different shapes",
        ),
    ],
)
def test_bad_input_is_told_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
