"""Feature extractors: the interface of torch-fidelity, and the check of the file of weights."""

import hashlib
import importlib
import os
import pickle

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from psmlib.data.images import load
from psmlib.evaluation import feature_extractors
from psmlib.evaluation.digit_classifier import classifier, to_bytes
from psmlib.evaluation.feature_extractors import (
    EXTRACTORS,
    INCEPTION_SHA256,
    NAME,
    DigitsExtractor,
    inception_weights,
)
from psmlib.evaluation.sample_quality import sample_quality

DIGITS = load("digits")
BYTES = to_bytes(DIGITS.test[:50], 17)


class Rgb(Dataset):
    """Levels as torch-fidelity takes images."""

    def __init__(self, levels):
        self.images = to_bytes(levels, 17).expand(-1, 3, -1, -1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def test_features_and_logits_are_those_of_the_classifier():
    net = classifier(DIGITS)
    both = DigitsExtractor(NAME, ["penultimate", "logits"])(BYTES)
    turned = DigitsExtractor(NAME, ["logits", "penultimate"])(BYTES)
    assert torch.equal(both[0], net.features(BYTES)) and torch.equal(both[1], net(BYTES))
    assert torch.equal(turned[0], both[1]) and torch.equal(turned[1], both[0])
    assert both[0].shape == (50, 64) and both[1].shape == (50, 10)


def test_grey_and_rgb_agree_and_colours_are_averaged():
    (grey,), (rgb,) = (DigitsExtractor(NAME, ["penultimate"])(x) for x in (BYTES, BYTES.expand(-1, 3, -1, -1)))
    assert torch.equal(grey, rgb)
    black = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mixed = torch.cat([black + 30, black + 60, black + 90], 1)
    (one,), (other,) = (DigitsExtractor(NAME, ["logits"])(x) for x in (mixed, black + 60))
    assert torch.allclose(one, other, atol=1e-12)


def test_it_is_registered_once_however_often_it_is_imported():
    importlib.reload(feature_extractors)
    assert list(FEATURE_EXTRACTORS_REGISTRY).count(NAME) == 1


@pytest.mark.parametrize(
    "bad", [BYTES.float(), BYTES[0], BYTES.expand(-1, 2, -1, -1), torch.zeros(3, 1, 28, 28, dtype=torch.uint8)]
)
def test_other_images_are_refused(bad):
    with pytest.raises(ValueError, match="takes uint8 images of shape .n, 1 or 3, 8, 8., got"):
        DigitsExtractor(NAME, ["logits"])(bad)


def test_other_features_and_files_of_weights_are_refused():
    with pytest.raises(ValueError, match="Requested features"):
        DigitsExtractor(NAME, ["2048"])
    with pytest.raises(ValueError, match="digits-classifier has weights of its own: leave out x.pth"):
        DigitsExtractor(NAME, ["logits"], feature_extractor_weights_path="x.pth")


def test_the_public_call_of_torch_fidelity_gives_the_same_figures():
    samples, reference = DIGITS.train[:120], DIGITS.test[:150]
    with torch.random.fork_rng():  # its loader draws from the global generator
        theirs = torch_fidelity.calculate_metrics(
            input1=Rgb(samples), input2=Rgb(reference), feature_extractor=NAME, fid=True, isc=True, prc=True,
            isc_splits=1, cuda=False, verbose=False, cache=False, save_cpu_ram=True,
        )  # fmt: skip
    ours = sample_quality(samples, reference, repeats=2).value
    for metric, key in {
        "fd": "frechet_inception_distance", "is": "inception_score_mean", "precision": "precision", "recall": "recall",
    }.items():  # fmt: skip
        assert ours[metric] == pytest.approx(theirs[key], rel=1e-9)


def test_only_inception_gives_an_fid():
    assert [k for k, e in EXTRACTORS.items() if "FID" in e.names.values()] == ["inception-v3-compat"]
    assert EXTRACTORS["digits"].names["fd"] == "FD-digits"
    assert all(e.registered in FEATURE_EXTRACTORS_REGISTRY for e in EXTRACTORS.values())


def test_missing_weights_are_named_with_their_size_and_place(tmp_path):
    for path in (None, tmp_path / "absent.pth", tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            inception_weights(path)
        said = str(error.value)
        for part in ("weights-inception-2015-12-05-6726825d.pth", "96 MB", "https://github.com", "data/raw", "weights"):
            assert part in said
        assert "\n" not in said and ". " not in said


def test_the_digest_is_that_of_the_name():
    assert len(INCEPTION_SHA256) == 64 and feature_extractors.INCEPTION.endswith(f"-{INCEPTION_SHA256[:8]}.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"x" * 5000])
def test_another_file_of_that_name_is_refused(tmp_path, content):
    path = tmp_path / feature_extractors.INCEPTION
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not weights-inception.*\(96 MB; its SHA-256 begins with .*get it from"):
        inception_weights(path)


class Trap:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch, zipped):
    path, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    if zipped:
        torch.save({"fc.bias": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), 2))
    monkeypatch.setattr(feature_extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="w.pth is not weights-inception.*UnpicklingError on reading"):
        inception_weights(path)
    assert not sprung.exists()
