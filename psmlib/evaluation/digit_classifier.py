r"""A small classifier of images, whose features say how much generated digits look like real ones.

A multilayer perceptron of 64-256-64-10 units (for 8 x 8 digits) with SiLU, trained by cross-entropy and stopped at the
best validation loss. Its last hidden layer is to digits what the pooling layer of Inception-v3 is to photographs. A
perceptron was preferred to convolutions as they were no more accurate here; saturating units hid faint noise and blur,
which is what samples suffer from. Features are scaled to a variance of 1 on the training images, on average, so that
distances do not hang on how large the network made them.

All is done in float64 on the CPU: rounding then differs between machines far below any figure that is printed.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psmlib.bank import checkpoint
from psmlib.data.images import Images
from psmlib.machine import paths
from psmlib.machine.streams import stream


def to_bytes(images: Tensor, levels: int) -> Tensor:
    """Levels 0 .. levels - 1 as the brightness 0 .. 255 that feature extractors take; any shape, uint8.

    Example:
        >>> to_bytes(torch.tensor([0, 1, 8, 16], dtype=torch.uint8), 17).tolist()
        [0, 16, 128, 255]
    """
    return images if levels == 256 else (images.double() * (255 / (levels - 1))).round().to(torch.uint8)


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is trained.

    Args:
        hidden: Units of the first layer.
        width: Units of the second, the features.
        epochs: Passes over the training images; the best by validation loss is kept.
        batch: Images per update.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
    """

    hidden: int = 256
    width: int = 64
    epochs: int = 20
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-4


class DigitClassifier(nn.Module):
    """A perceptron with two hidden layers.

    Args:
        shape: Of the images: channels, height, width.
        classes: How many.
        recipe: Its widths are used.
        seed: Of the first weights: torch's own distributions, from a stream of its own.

    Example:
        >>> net = DigitClassifier((1, 8, 8), 10)
        >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> net.features(images).shape, net(images).shape
        (torch.Size([2, 64]), torch.Size([2, 10]))
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, recipe: ClassifierSettings | None = None, seed: int = 0
    ):
        super().__init__()
        recipe, self.shape = recipe or ClassifierSettings(), tuple(shape)
        widths = (math.prod(shape), recipe.hidden, recipe.width, classes)
        with torch.device("meta"):  # torch would start the layers from the global generator
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.double().to_empty(device="cpu")
        generator = stream(seed)
        for layer in self.layers:
            bound = 1 / math.sqrt(layer.in_features)
            for tensor in (layer.weight, layer.bias):
                tensor.data.uniform_(-bound, bound, generator=generator)
        self.register_buffer("centre", torch.zeros((), dtype=torch.float64))
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer. Shape: (n, C, H, W), brightness 0 .. 255 of any type -> (n, width), float64."""
        h = (x.double().flatten(1) / 255 - self.centre) / self.spread
        for layer in self.layers[:-1]:
            h = F.silu(layer(h))
        return h / self.unit

    def forward(self, x: Tensor) -> Tensor:
        """Logits. Shape: (n, C, H, W) -> (n, classes), float64."""
        return self.layers[-1](self.features(x))


def train(data: Images, seed: int = 0, recipe: ClassifierSettings | None = None) -> DigitClassifier:
    """A classifier of a labelled data set, from its training images alone; validation images say when to stop.

    Nothing depends on, or moves, torch's global generator, and it may be called where gradients are turned off.

    Args:
        data: Images with labels.
        seed: Of the weights and of the order of the images.
        recipe: See :class:`ClassifierSettings`.

    Returns:
        The classifier of the best epoch, in evaluation mode and without gradients, its features scaled.

    Raises:
        ValueError: for data without labels.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> round(accuracy(train(digits, recipe=ClassifierSettings(epochs=2)), digits), 1)
        0.9
    """
    if data.train_labels is None or data.validation_labels is None:
        raise ValueError(f"{data.name} has no labels to train a classifier on: use digits, mnist or cifar10")
    with torch.inference_mode(False), torch.enable_grad():
        return _train(data, seed, recipe or ClassifierSettings())


def _train(data: Images, seed: int, recipe: ClassifierSettings) -> DigitClassifier:
    x, y = to_bytes(data.train, data.levels), data.train_labels
    x_held, y_held = to_bytes(data.validation, data.levels), data.validation_labels
    net = DigitClassifier(data.shape, int(y.max()) + 1, recipe, seed)
    net.centre.fill_(x.double().mean() / 255)
    net.spread.fill_(x.double().std() / 255)
    order, best, kept = stream(seed, 1), math.inf, {}
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(x), generator=order).split(recipe.batch):
            optimiser.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(F.cross_entropy(net(x_held), y_held))
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    net.eval().requires_grad_(False)
    net.unit.copy_(net.features(x).var(0).mean().sqrt())
    net.layers[-1].weight.mul_(net.unit)
    return net


def accuracy(net: DigitClassifier, data: Images, split: str = "test") -> float:
    """Share of the images of a split whose class is named rightly."""
    with torch.no_grad():
        guess = net(to_bytes(getattr(data, split), data.levels)).argmax(1)
    return float((guess == getattr(data, f"{split}_labels")).double().mean())


def classifier(data: Images, seed: int = 0, recipe: ClassifierSettings | None = None) -> DigitClassifier:
    """The trained classifier of a data set, from data/cache if it lies there whole and is of these very data.

    A file of other data, another recipe or another seed, or whose weights are not those that were written, is
    written over; where nothing can be written, the classifier is trained each time.

    Args:
        data: Images with labels.
        seed: Of the training.
        recipe: See :class:`ClassifierSettings`.

    Example:
        >>> from psmlib.data.images import load
        >>> net = classifier(load("digits"))
        >>> sum(p.numel() for p in net.parameters())
        33738
    """
    recipe = recipe or ClassifierSettings()
    path = paths.OUTPUT / "data" / "cache" / "classifier" / f"{data.name}_{seed}.safetensors"
    about = {"data": data.sha256, "recipe": asdict(recipe), "seed": seed}
    try:
        tensors, found = checkpoint.load(path, about)
        if found.get("weights") == _digest(tensors):
            net = DigitClassifier(data.shape, len(tensors["layers.2.bias"]), recipe)
            net.load_state_dict(tensors)
            return net.eval().requires_grad_(False)
    except (ValueError, KeyError, RuntimeError):
        pass  # absent, damaged or of another run
    net = train(data, seed, recipe)
    with suppress(OSError):
        checkpoint.save(path, net.state_dict(), about | {"weights": _digest(net.state_dict())})
    return net


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors: safetensors notices a short file, but no altered number."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
