"""Feature extractors for sample quality: a classifier of digits, and Inception-v3 from a file of weights.

Importing this module registers the classifier with torch-fidelity, so that
``torch_fidelity.calculate_metrics(feature_extractor="digits-classifier", ...)`` works. A Frechet distance of its
features is called FD-digits, not FID, because values from different extractors cannot be compared.
"""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from psmlib.data.images import load
from psmlib.evaluation.digit_classifier import classifier, to_bytes
from psmlib.machine.checks import check_choice

NAME = "digits-classifier"
METRICS = ("fd", "kid", "is", "precision", "recall")

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_PAGE = "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"


class DigitsExtractor(FeatureExtractorBase):
    """Features "penultimate" (64) and "logits" (10) of 8 x 8 images with 256 levels, grey or RGB, in float64.

    It has the interface that torch-fidelity requires. The channels of an RGB image are averaged.

    Args:
        name: Its name in torch-fidelity's registry.
        features_list: Names of the features, in the order of the output.
        feature_extractor_weights_path: Must be None: the weights are trained by :func:`classifier`.
        **kwargs: Other settings of torch-fidelity, not used.

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
            got = f"{input.dtype} {tuple(input.shape)}"
            raise ValueError(f"{NAME} takes uint8 images of shape (n, 1 or 3, 8, 8), got {got}: use another extractor")
        penultimate = self.classifier.features(input.double().mean(1, keepdim=True))
        every = {"penultimate": penultimate, "logits": self.classifier.layers[-1](penultimate)}
        return tuple(every[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


if NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(NAME, DigitsExtractor)


@dataclass(frozen=True)
class ExtractorSpec:
    """Properties of a feature extractor.

    Args:
        registered: Its name in torch-fidelity's registry.
        names: Names of the metrics computed with it.
        levels: Default number of grey levels of its images.
        splits: Most parts whose Inception scores are averaged.
        from_file: Whether it needs a file of weights from the user.
    """

    registered: str
    names: dict[str, str]
    levels: int
    splits: int
    from_file: bool


_NAMES = dict(zip(METRICS, ("FID", "KID", "IS", "precision", "recall"), strict=True))
EXTRACTORS = {
    # one part only: the Inception score of few digits depends mostly on their number
    "digits": ExtractorSpec(NAME, {k: f"{v}-digits" for k, v in (_NAMES | {"fd": "FD"}).items()}, 17, 1, False),
    "inception-v3-compat": ExtractorSpec("inception-v3-compat", _NAMES, 256, 10, True),
}


class Extractor:
    """Computes features and logits of images given as grey levels.

    Args:
        name: "digits" or "inception-v3-compat".
        weights: Path of Inception-v3's weights.
        levels: Number of grey levels; by default that of the extractor.
        device: Device of the computation.
        batch: Images at a time.

    Raises:
        ValueError: for an unknown extractor, a number of levels outside 2..256, or a wrong file of weights.
        FileNotFoundError: when Inception-v3's weights are missing.

    Example:
        >>> features, logits = Extractor("digits")(load("digits").test[:5])
        >>> features.shape, logits.shape
        (torch.Size([5, 64]), torch.Size([5, 10]))
    """

    def __init__(self, name: str, weights=None, levels: int | None = None, device: str = "cpu", batch: int = 256):
        check_choice("extractor", name, EXTRACTORS)
        self.spec, self.device, self.batch = EXTRACTORS[name], device, batch
        self.levels = self.spec.levels if levels is None else levels
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {self.levels}: give the number of grey levels")
        if self.spec.from_file:
            weights = str(inception_weights(weights))
        kind = FEATURE_EXTRACTORS_REGISTRY[self.spec.registered]
        layers = [kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
        settings = dict(cuda=False, verbose=False, feature_extractor_weights_path=weights)
        with torch.random.fork_rng(devices=[]):  # torch draws initial weights, though the file's replace them
            self.net = create_feature_extractor(self.spec.registered, layers, **settings).to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, F) and logits (n, classes) of the sorted images, float64 on the CPU.

        Sorting makes every metric independent of the order of the images.
        """
        order = torch.from_numpy(np.argsort(byte_rows(images), kind="stable"))
        images = to_bytes(images[order.to(images.device)], self.levels)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with torch.no_grad():
            pieces = [self.net(piece.to(self.device)) for piece in images.split(self.batch)]
        return tuple(torch.cat(layer).cpu().double() for layer in zip(*pieces, strict=True))


def byte_rows(images: Tensor) -> np.ndarray:
    """Each image as one string of bytes, for sorting and searching. Shape: (n, C, H, W) -> (n,)."""
    rows = np.ascontiguousarray(images.flatten(1).cpu().numpy())
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


def inception_weights(path: str | Path | None) -> Path:
    """Checks the file of Inception-v3's weights, because torch-fidelity would run any code stored in it.

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: when the file is missing, naming what to download and where to put it.
        ValueError: when it is another file.

    Example:
        >>> inception_weights(None)
        Traceback (most recent call last):
        ...
        FileNotFoundError: Inception-v3 needs weights-inception-2015-12-05-6726825d.pth (96 MB): get it from ...
    """
    mend = f"get it from {_PAGE}, put it in data/raw and give its path as weights"
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"Inception-v3 needs {INCEPTION} (96 MB): {mend}")
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    fault = f"its SHA-256 begins with {found[:8]}" if found != INCEPTION_SHA256 else ""
    if not fault:
        try:  # tensors only, no code
            torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            fault = f"{type(error).__name__} on reading"
    if fault:
        raise ValueError(f"{path} is not {INCEPTION} (96 MB; {fault}): {mend}")
    return Path(path)
