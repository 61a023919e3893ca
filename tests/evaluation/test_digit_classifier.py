"""The classifier of digits: accuracy, reproducibility, and the stored file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from psmlib.bank import checkpoint
from psmlib.data.images import Images, load
from psmlib.evaluation import digit_classifier
from psmlib.evaluation.digit_classifier import (
    ClassifierSettings,
    DigitClassifier,
    accuracy,
    classifier,
    to_bytes,
    train,
)
from psmlib.machine import paths

BRIEF = ClassifierSettings(epochs=1)
DIGITS = load("digits")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUT", tmp_path)
    return tmp_path / "data" / "cache" / "classifier" / "digits_0.safetensors"


@pytest.fixture
def counted(monkeypatch) -> list:
    """The seeds of all trainings."""
    seeds = []

    def counting(data, seed, settings):
        seeds.append(seed)
        return train(data, seed, settings)

    monkeypatch.setattr(digit_classifier, "train", counting)
    return seeds


def test_it_is_accurate_on_digits_it_has_not_seen():
    net = classifier(DIGITS)
    assert accuracy(net, DIGITS) > 0.97 and accuracy(net, DIGITS, "validation") > 0.95
    assert not any(p.requires_grad for p in net.parameters())


def test_the_epoch_with_the_best_validation_loss_is_kept(monkeypatch):
    seen = []
    real = torch.nn.functional.cross_entropy

    def watched(logits, labels):
        loss = real(logits, labels)
        if not torch.is_grad_enabled():
            seen.append(float(loss))
        return loss

    monkeypatch.setattr(digit_classifier.F, "cross_entropy", watched)
    net = train(DIGITS, 1)
    loss = real(net(to_bytes(DIGITS.validation, 17)), DIGITS.validation_labels)
    # the last layer was scaled against the features, which leaves the logits as they were
    assert len(seen) == 20 and seen[-1] > min(seen) and float(loss) == pytest.approx(min(seen), rel=1e-12)


def test_neither_test_images_nor_test_labels_are_looked_at():
    blind = load("digits").__class__(
        "digits", {f"{s}{k}": getattr(DIGITS, s + k).numpy() for s in ("train", "validation") for k in ("", "_labels")}
        | {"test": np.zeros((1, 1, 8, 8), np.uint8)}, levels=17,
    )  # fmt: skip
    assert same(train(blind, settings=BRIEF), train(DIGITS, settings=BRIEF))


def test_the_seed_alone_decides_and_the_global_generator_stays():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train(DIGITS, 0, BRIEF)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, train(DIGITS, 0, BRIEF)) and not same(first, train(DIGITS, 1, BRIEF))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_trained_where_gradients_are_off(mode):
    with mode():
        net = train(DIGITS, 0, BRIEF)
    assert same(net, train(DIGITS, 0, BRIEF))


def test_features_have_variance_one_on_average_and_give_the_logits():
    net = train(DIGITS, 0, BRIEF)
    x = to_bytes(DIGITS.train, 17)
    features = net.features(x)
    assert float(features.var(0).mean()) == pytest.approx(1) and features.dtype == torch.float64
    assert torch.equal(net(x), net.layers[-1](features))


def test_input_is_scaled_by_the_training_images():
    net = train(DIGITS, 0, BRIEF)
    z = (to_bytes(DIGITS.train, 17).double() / 255 - net.centre) / net.spread
    assert abs(float(z.mean())) < 1e-12 and float(z.std()) == pytest.approx(1)


def test_brightness_is_exact_at_both_ends_and_keeps_levels_apart():
    assert to_bytes(torch.arange(17, dtype=torch.uint8), 17).diff().min() >= 15
    assert to_bytes(torch.tensor([0, 1], dtype=torch.uint8), 2).tolist() == [0, 255]
    whole = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(whole, 256), whole)


def test_any_labelled_images_will_do():
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    images = rng.integers(0, 60, (60, 3, 4, 5), dtype=np.uint8)
    images[np.arange(60), labels] += 150  # each class has its own bright channel
    parts = {"train": images, "train_labels": labels, "test": images, "test_labels": labels}
    data = Images("stripes", parts, levels=256, cut=9)
    net = train(data, settings=ClassifierSettings(hidden=16, width=8, batch=10))
    assert net.features(data.test).shape == (60, 8) and net(data.test).shape == (60, 3) and accuracy(net, data) == 1


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="photos8 has no labels to train a classifier on: use digits"):
        train(load("photos8"))


def test_it_is_trained_once_and_read_back(output, counted):
    first = classifier(DIGITS, settings=BRIEF)
    second = classifier(DIGITS, settings=BRIEF)
    assert counted == [0] and output.is_file() and same(first, second)
    assert not second.training and not any(p.requires_grad for p in second.parameters())
    assert torch.equal(second(DIGITS.test), first(DIGITS.test))


@pytest.mark.parametrize("stale", ["settings", "seed", "data"])
def test_a_file_of_another_run_is_trained_anew(output, counted, stale):
    classifier(DIGITS, settings=BRIEF)
    settings = replace(BRIEF, lr=1e-3) if stale == "settings" else BRIEF
    data = DIGITS
    if stale == "seed":
        output.replace(output.with_name("digits_1.safetensors"))
    if stale == "data":
        parts = {s + k: getattr(DIGITS, s + k).numpy().copy() for s in ("train", "validation", "test")
                 for k in ("", "_labels")}  # fmt: skip
        parts["train"][0, 0, 0, 0] ^= 1
        data = Images("digits", parts, levels=17)
    net = classifier(data, int(stale == "seed"), settings)
    assert len(counted) == 2 and same(net, train(data, int(stale == "seed"), settings))


def _flip(path):
    """One number changed, the file otherwise perfect."""
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["layers.0.weight"][0, 0] += 1e-3
    save_file(tensors, path, about)


def _foreign(path):
    """The right description with other tensors, and their digest."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    tensors = {"layers.2.bias": torch.zeros(10)}
    checkpoint.save(path, tensors, about)


@pytest.mark.parametrize(
    "spoil", [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.write_bytes(b""), _flip, _foreign]
)
def test_a_damaged_file_is_trained_anew_and_written_over(output, counted, spoil):
    first = classifier(DIGITS, settings=BRIEF)
    spoil(output)
    assert same(classifier(DIGITS, settings=BRIEF), first) and counted == [0, 0]
    assert same(classifier(DIGITS, settings=BRIEF), first) and counted == [0, 0]


def test_it_is_trained_each_time_where_nothing_can_be_written(output, counted, tmp_path):
    (tmp_path / "data").write_text("in the way")
    assert same(classifier(DIGITS, settings=BRIEF), classifier(DIGITS, settings=BRIEF)) and counted == [0, 0]


def test_the_layers_are_a_perceptron():
    net, x = DigitClassifier((1, 8, 8), 10, ClassifierSettings(hidden=5, width=4)), to_bytes(DIGITS.test[:3], 17)
    (a, b, c), silu = net.layers, torch.nn.functional.silu
    by_hand = c(silu(b(silu(a(x.double().flatten(1) / 255)))))
    assert torch.allclose(net(x), by_hand, atol=1e-12)
    assert 0.9 / 8 < float(a.weight.detach().abs().max()) <= 1 / 8
