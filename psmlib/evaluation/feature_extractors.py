"""The feature extractors of torch-fidelity that the book uses: a classifier of digits, and Inception-v3 from a file.

Once this module is imported, ``torch_fidelity.calculate_metrics(feature_extractor="digits-classifier", ...)`` works;
:mod:`psmlib.evaluation.sample_quality` is the shorter way. A Frechet distance of these features is called
FD-digits, never FID: no two extractors give comparable figures.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from psmlib.data.archives import size_in_words
from psmlib.data.images import load
from psmlib.evaluation.digit_classifier import classifier

NAME = "digits-classifier"
METRICS = ("fd", "kid", "is", "precision", "recall")

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_BYTES = 95_628_359
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_PAGE = "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"


class DigitsExtractor(FeatureExtractorBase):
    """Features "penultimate" (64) and "logits" (10) of 8 x 8 images with 256 levels, grey or RGB, in float64.

    torch-fidelity makes it from its registry; an RGB image counts by the mean of its channels.

    Args:
        name: As registered.
        features_list: Which features, in which order.
        feature_extractor_weights_path: Must be None: the project trains the weights.
        **kwargs: The other settings of torch-fidelity, not used.

    Raises:
        ValueError: for weights from a file, or unknown features.

    Example:
        >>> extractor = DigitsExtractor(NAME, ["penultimate", "logits"])
        >>> [tuple(f.shape) for f in extractor(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))]
        [(5, 64), (5, 10)]
    """

    def __init__(self, name: str, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__(name, features_list)
        if feature_extractor_weights_path is not None:
            raise ValueError(f"{NAME} has weights of its own: leave out {feature_extractor_weights_path}")
        self.classifier = classifier(load("digits"))

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """The requested features. Shape: (n, 1 or 3, 8, 8), uint8 -> a tuple of (n, F)."""
        if input.dtype != torch.uint8 or input.dim() != 4 or input.shape[1] not in (1, 3) or input.shape[2:] != (8, 8):
            raise ValueError(
                f"{NAME} takes uint8 images of shape (n, 1 or 3, 8, 8), got {input.dtype} {tuple(input.shape)}: "
                f"use an extractor made for such images"
            )
        penultimate = self.classifier.features(input.double().mean(1, keepdim=True))
        every = {"penultimate": penultimate, "logits": self.classifier.layers[-1](penultimate)}
        return tuple(every[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": "penultimate", "kid": "penultimate", "prc": "penultimate"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


def register() -> None:
    """Enters the extractor in torch-fidelity's registry; again does nothing."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, DigitsExtractor)


register()


@dataclass(frozen=True)
class Extractor:
    """What :mod:`psmlib.evaluation.sample_quality` knows of an extractor.

    Args:
        registered: Its name in torch-fidelity's registry.
        names: What its figures are called, by metric.
        levels: Grey levels of its images, unless the caller says otherwise.
        splits: At most so many parts, whose Inception scores are averaged.
        from_file: Whether it needs the reader's file of weights.
    """

    registered: str
    names: dict[str, str]
    levels: int
    splits: int
    from_file: bool


_NAMES = dict(zip(METRICS, ("FID", "KID", "IS", "precision", "recall"), strict=True))
EXTRACTORS = {
    # one part only: the score of few digits mostly says how few they are
    "digits": Extractor(NAME, {k: f"{v}-digits" for k, v in (_NAMES | {"fd": "FD"}).items()}, 17, 1, False),
    "inception-v3-compat": Extractor("inception-v3-compat", _NAMES, 256, 10, True),
}


def inception_weights(path: str | Path | None) -> Path:
    """The file of Inception-v3's weights, checked: torch-fidelity would run whatever code it holds.

    Args:
        path: Where the reader put it.

    Raises:
        FileNotFoundError: when there is none: what to get, how big it is, where to put it.
        ValueError: when it is another file.

    Example:
        >>> inception_weights(None)
        Traceback (most recent call last):
        ...
        FileNotFoundError: Inception-v3 needs weights-inception-2015-12-05-6726825d.pth (96 MB): get it from ...
    """
    mend = f"get it from {_PAGE}, put it in data/raw and give its path as weights"
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"Inception-v3 needs {INCEPTION} ({size_in_words(INCEPTION_BYTES)}): {mend}")
    path = Path(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    fault = f"its SHA-256 begins with {found[:8]}" if found != INCEPTION_SHA256 else ""
    if not fault:
        try:  # tensors alone, no code
            torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            fault = f"{type(error).__name__} on reading"
    if fault:
        raise ValueError(f"{path} is not {INCEPTION} ({size_in_words(INCEPTION_BYTES)}; {fault}): {mend}")
    return path
