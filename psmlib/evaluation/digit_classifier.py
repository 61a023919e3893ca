r"""A small classifier of images whose features measure the quality of generated digits.

A multilayer perceptron of 64-256-64-10 units (for 8 x 8 digits) with SiLU, trained by cross-entropy with early stopping
at the lowest validation loss. Its last hidden layer takes the place of Inception-v3's pooling layer. Convolutions were
not more accurate here, and saturating units are insensitive to the faint noise and blur of samples. All features are
divided by one number, so that their average variance on the training images is 1, whatever the scale of the weights.

All is computed in float64 on the CPU, so that rounding differences between machines are far below the printed digits.
"""

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
    """Maps levels 0 .. levels - 1 to the brightness 0 .. 255 that feature extractors take; any shape, uint8.

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
        width: Units of the second layer, the features.
        epochs: Passes over the training images; the epoch with the lowest validation loss is kept.
        batch: Images per update.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
    """

    hidden: int = 256
    width: int = 64
    epochs: int = 20
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-4


DEFAULT = ClassifierSettings()


class DigitClassifier(nn.Module):
    """A perceptron with two hidden layers.

    Args:
        shape: Shape of an image: channels, height, width.
        classes: Number of classes.
        settings: A :class:`ClassifierSettings`, of which the widths are used.
        seed: Seed of the initial weights, which have torch's default distributions.

    Example:
        >>> net = DigitClassifier((1, 8, 8), 10)
        >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> net.features(images).shape, net(images).shape
        (torch.Size([2, 64]), torch.Size([2, 10]))
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, settings=DEFAULT, seed: int = 0):
        super().__init__()
        widths = (math.prod(shape), settings.hidden, settings.width, classes)
        with torch.device("meta"):  # torch would draw the weights from the global generator
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.double().to_empty(device="cpu")
        generator = stream(seed)
        for layer in self.layers:
            bound = 1 / math.sqrt(layer.in_features)
            for tensor in (layer.weight, layer.bias):
                tensor.data.uniform_(-bound, bound, generator=generator)
        for name, value in (("centre", 0.0), ("spread", 1.0), ("unit", 1.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer. Shape: (n, C, H, W), brightness 0 .. 255 of any type -> (n, width), float64."""
        h = (x.double().flatten(1) / 255 - self.centre) / self.spread
        for layer in self.layers[:-1]:
            h = F.silu(layer(h))
        return h / self.unit

    def forward(self, x: Tensor) -> Tensor:
        """Logits. Shape: (n, C, H, W) -> (n, classes), float64."""
        return self.layers[-1](self.features(x))


@torch.inference_mode(False)
@torch.enable_grad()
def train(data: Images, seed: int = 0, settings: ClassifierSettings = DEFAULT) -> DigitClassifier:
    """Trains a classifier on the training images of a labelled data set, stopping early by its validation images.

    It does not use torch's global generator, and may be called where gradients are turned off.

    Args:
        data: Images with labels.
        seed: Seed of the weights and of the order of the images.
        settings: See :class:`ClassifierSettings`.

    Returns:
        The classifier of the best epoch, in evaluation mode and without gradients, its features scaled.

    Raises:
        ValueError: for data without labels.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> round(accuracy(train(digits, settings=ClassifierSettings(epochs=2)), digits), 1)
        0.9
    """
    classes = _classes(data)
    x, y = to_bytes(data.train, data.levels), data.train_labels
    x_held, y_held = to_bytes(data.validation, data.levels), data.validation_labels
    net = DigitClassifier(data.shape, classes, settings, seed)
    net.centre.fill_(x.double().mean() / 255)
    net.spread.fill_(x.double().std() / 255)
    order, best, kept = stream(seed, 1), math.inf, {}
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x), generator=order).split(settings.batch):
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


def _classes(data: Images) -> int:
    """Number of classes of the training images."""
    if data.train_labels is None or data.validation_labels is None:
        raise ValueError(f"{data.name} has no labels to train a classifier on: use digits, mnist or cifar10")
    return int(data.train_labels.max()) + 1


def accuracy(net: DigitClassifier, data: Images, split: str = "test") -> float:
    """Proportion of the images of a split that are classified correctly."""
    with torch.no_grad():
        guess = net(to_bytes(getattr(data, split), data.levels)).argmax(1)
    return float((guess == getattr(data, f"{split}_labels")).double().mean())


def classifier(data: Images, seed: int = 0, settings: ClassifierSettings = DEFAULT) -> DigitClassifier:
    """The trained classifier of a data set, read from data/cache, or trained and stored there.

    A file is replaced if it is damaged or belongs to other data, settings or another seed. Where nothing can be
    written, the classifier is trained at each call.

    Args:
        data: Images with labels.
        seed: Seed of the training.
        settings: See :class:`ClassifierSettings`.

    Example:
        >>> from psmlib.data.images import load
        >>> net = classifier(load("digits"))
        >>> sum(p.numel() for p in net.parameters())
        33738
    """
    path = paths.OUTPUT / "data" / "cache" / "classifier" / f"{data.name}_{seed}.safetensors"
    about = {"data": data.sha256, "settings": asdict(settings), "seed": seed}
    try:
        net = DigitClassifier(data.shape, _classes(data), settings)
        net.load_state_dict(checkpoint.load(path, about, net.state_dict())[0])
        return net.eval().requires_grad_(False)
    except ValueError:
        pass  # no file, a damaged one, or that of another run
    net = train(data, seed, settings)
    with suppress(OSError):
        checkpoint.save(path, net.state_dict(), about)
    return net
