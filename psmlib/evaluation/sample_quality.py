r"""How good samples of images are: Frechet distance, kernel distance, Inception score, precision and recall.

They are computed by torch-fidelity on the features of an extractor: the project's own classifier for digits,
Inception-v3 for photographs (from a file of weights that the reader gives). With means and covariances of the features
(Heusel et al. 2017, Eq. 6)

.. math:: \mathrm{FD} = |\mu_1-\mu_2|^2 + \mathrm{tr}\,(\Sigma_1 + \Sigma_2 - 2(\Sigma_1\Sigma_2)^{1/2}) .

The Frechet distance of few images is too large by about c/n, and so it is for real images: a figure means nothing
without the :func:`floor` at the same n. Covariances of no more images than features are singular; torch-fidelity adds
nothing to them, but sums the square roots of the eigenvalues of their product, to which a null space adds 0. The
kernel distance (KID; Binkowski et al. 2018) is taken over all pairs rather than torch-fidelity's random subsets. It has
no bias for independent images; the splits of digits share the classes out evenly, so real ones come out a little below
0. Precision and recall (Kynkaanniemi et al. 2019) use three neighbours. No figure tells good samples from copies of
the training images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from psmlib.evaluation.digit_classifier import to_bytes
from psmlib.evaluation.feature_extractors import EXTRACTORS, METRICS, inception_weights
from psmlib.machine.streams import stream

FEWEST = 8
"""Images on either side: half of them must have three neighbours each."""


@dataclass(frozen=True)
class SampleQuality:
    """What :func:`sample_quality` and :func:`floor` return.

    Attributes:
        extractor: "digits" or "inception-v3-compat".
        samples: Number of samples.
        reference: Number of reference images.
        value: Figure by metric.
        stderr: Its standard error by metric: how far it would move with as many fresh samples and the same reference.
    """

    extractor: str
    samples: int
    reference: int
    value: dict[str, float]
    stderr: dict[str, float]

    @property
    def names(self) -> dict[str, str]:
        """What the figures are called, by metric: "FID" only if Inception-v3 looked at the images.

        Example:
            >>> SampleQuality("digits", 500, 359, {}, {}).names["fd"]
            'FD-digits'
        """
        return EXTRACTORS[self.extractor].names


class _Eye:
    """An extractor at work; its arguments are those of :func:`sample_quality`."""

    def __init__(self, extractor: str, weights: str | Path | None, levels: int | None, device: str, batch: int):
        if extractor not in EXTRACTORS:
            raise ValueError(f"unknown extractor {extractor!r}: use one of {', '.join(EXTRACTORS)}")
        self.spec, self.device, self.batch = EXTRACTORS[extractor], device, batch
        self.levels = self.spec.levels if levels is None else levels
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {self.levels}: give the number of grey levels")
        if self.spec.from_file:
            weights = str(inception_weights(weights))
        kind = FEATURE_EXTRACTORS_REGISTRY[self.spec.registered]
        layers = [kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
        with torch.random.fork_rng(devices=[]):  # torch draws first weights, though the file's replace them
            net = create_feature_extractor(
                self.spec.registered, layers, cuda=False, verbose=False, feature_extractor_weights_path=weights
            )
        self.net = net.to(device)

    def check(self, **sides: Tensor) -> None:
        """Refuses what are not levels, and images of different sizes."""
        for what, images in sides.items():
            if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
                got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"{what} must be uint8 levels (n, C, H, W), got {got}: use the data's quantise")
            if len(images) < FEWEST or not images[0].numel():
                raise ValueError(f"{what} must be {FEWEST} images or more, got shape {tuple(images.shape)}: give more")
            if int(images.max()) >= self.levels:
                raise ValueError(
                    f"{what} has level {int(images.max())} where {self.levels} levels end at {self.levels - 1}: "
                    f"give the right number of levels"
                )
        sizes = {what: tuple(images.shape[2:]) for what, images in sides.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"images differ in height and width ({sizes}): give samples the size of the reference")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, F) and logits (n, classes) on the CPU, float64, of the sorted images."""
        # in an order of the images' own, so that no figure hangs on that in which they came
        order = torch.from_numpy(np.argsort(_rows(images), kind="stable"))
        images = to_bytes(images[order.to(images.device)], self.levels)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with torch.no_grad():
            pieces = [self.net(piece.to(self.device)) for piece in images.split(self.batch)]
        return tuple(torch.cat(layer).cpu().double() for layer in zip(*pieces, strict=True))


def _rows(images: Tensor) -> np.ndarray:
    """Every image as one string of bytes, which can be sorted and looked up. Shape: (n, C, H, W) -> (n,)."""
    rows = np.ascontiguousarray(images.flatten(1).cpu().numpy())
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The cubic kernel of KID. Shapes: (n, d), (m, d) -> (n, m)."""
    k = x @ y.T / x.shape[1] + 1
    return k * k * k


def _own(x: Tensor, parts: Tensor) -> Tensor:
    """Mean kernel of all pairs of two different images in every part of x. Shapes: (n, d), (r, s) -> (r,)."""
    chosen, total = torch.zeros(len(x), len(parts), dtype=x.dtype), x.new_zeros(len(parts))
    chosen.scatter_(0, parts.T, 1.0)
    for rows in torch.arange(len(x)).split(1024):  # in pieces: 50,000 images would take 20 GB
        k = _kernel(x[rows], x)
        k[torch.arange(len(rows)), rows] = 0
        total += (chosen[rows] * (k @ chosen)).sum(0)
    return total / (parts.shape[1] * (parts.shape[1] - 1))


def _kid(x: Tensor, y: Tensor, parts: Tensor) -> Tensor:
    """Kernel distance of every part of x from y. Shapes: (n, d), (m, d), (r, s) -> (r,).

    All pairs count once, which torch-fidelity's mean over random subsets tends to.
    """
    cross = torch.cat([_kernel(rows, y).mean(1) for rows in x.split(1024)])
    return _own(x, parts) + _own(y, torch.arange(len(y))[None]) - 2 * cross[parts].mean(1)


def _figures(
    x: Tensor, logits: Tensor, y: Tensor, parts: Tensor, metrics: tuple[str, ...], splits: int, seed: int
) -> dict[str, np.ndarray]:
    """Figures of parts of the samples, given by their rows. Shapes: (n, F), (n, classes), (m, F), (r, s) -> (r,)."""
    found: dict[str, list[float]] = {metric: [] for metric in metrics}
    if "kid" in metrics:
        found["kid"] = _kid(x, y, parts).tolist()
    real = fid_features_to_statistics(y) if "fd" in metrics else None
    for rows in parts:
        if real is not None:
            whole = fid_statistics_to_metric(fid_features_to_statistics(x[rows]), real, False)
            found["fd"].append(whole[KEY_METRIC_FID])
        if "is" in metrics:
            pieces = max(1, min(splits, len(rows) // 500))
            found["is"].append(isc_features_to_metric(logits[rows], pieces, True, seed)[KEY_METRIC_ISC_MEAN])
        if "precision" in metrics or "recall" in metrics:
            both = prc_features_to_metric(x[rows], y, save_cpu_ram=True, prc_batch_size=2048, verbose=False)
            for metric in {"precision", "recall"} & set(metrics):
                found[metric].append(both[{"precision": KEY_METRIC_PRECISION, "recall": KEY_METRIC_RECALL}[metric]])
    return {metric: np.array(values) for metric, values in found.items()}


def _draws(n: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows of random parts, drawn without replacement. Shape: (count, size)."""
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(count)])


def _asked(metrics: Iterable[str]) -> tuple[str, ...]:
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"unknown metrics {unknown}: use some of {', '.join(METRICS)}")
    return tuple(metric for metric in METRICS if metric in metrics)


def sample_quality(
    samples: Tensor, reference: Tensor, *, extractor: str = "digits", weights: str | Path | None = None,
    metrics: Iterable[str] = METRICS, levels: int | None = None, device: str = "cpu", seed: int = 0,
    repeats: int | None = None, batch: int = 256,
) -> SampleQuality:  # fmt: skip
    r"""Figures of merit of samples against real images; see the module's text for what they are.

    A standard error is the standard deviation over random halves of the samples (delete-half jackknife): of what is
    linear in the n samples, a part of s varies by :math:`\sigma^2(1/s - 1/n)` and all n by :math:`\sigma^2/n`. It is
    right far from the floor, and up to :math:`\sqrt 3` too large at the floor of "fd" and "kid" and the ceiling of
    "is", where figures are quadratic. Nothing is printed or downloaded, the global random numbers stay as they are,
    and the order of the images does not matter.

    Args:
        samples: Whole levels. Shape: (n, C, H, W), uint8; for digits (n, 1 or 3, 8, 8).
        reference: Real images, alike.
        extractor: "digits" (figures called FD-digits and so on) or "inception-v3-compat" (FID and so on).
        weights: Path of Inception-v3's weights; see :func:`psmlib.evaluation.feature_extractors.inception_weights`.
        metrics: Which of "fd", "kid", "is", "precision" and "recall".
        levels: Number of grey levels; by default 17 for digits, and else 256.
        device: Where the features are computed.
        seed: Of the halves, and of the parts of which the Inception score is an average.
        repeats: Halves for the standard errors; by default 100, or 10 where images or features are many.
        batch: Images at once.

    Returns:
        A :class:`SampleQuality`.

    Raises:
        ValueError: for images that are no levels, too few or of another size; for unknown names; for wrong weights.
        FileNotFoundError: when Inception-v3's weights are not there.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> real = sample_quality(digits.validation, digits.test)
        >>> real.names["fd"], real.value["fd"] < 5, real.value["precision"] > .8
        ('FD-digits', True, True)
        >>> noise = torch.randint(0, 17, (180, 1, 8, 8), dtype=torch.uint8)
        >>> sample_quality(noise, digits.test, metrics="fd").value["fd"] > 20 * real.value["fd"]
        True
    """
    metrics, eye = _asked(metrics), _Eye(extractor, weights, levels, device, batch)
    eye.check(samples=samples, reference=reference)
    (x, logits), (y, _) = eye(samples), eye(reference)
    n, half = len(x), len(x) // 2
    repeats = (100 if max(n, len(y)) <= 4000 and x.shape[1] <= 256 else 10) if repeats is None else repeats
    if repeats < 2:
        raise ValueError(f"a standard error needs two halves or more, got repeats={repeats}")
    value = _figures(x, logits, y, torch.arange(n)[None], metrics, eye.spec.splits, seed)
    halves = _draws(n, half, repeats, stream(seed, 1))
    spread = _figures(x, logits, y, halves, metrics, eye.spec.splits, seed)
    return SampleQuality(
        extractor, n, len(y), {k: float(v[0]) for k, v in value.items()},
        {k: float(v.std(ddof=1)) * (half / (n - half)) ** 0.5 for k, v in spread.items()},
    )  # fmt: skip


def floor(
    pool: Tensor, n: int, reference: Tensor | int | None = None, *, extractor: str = "digits",
    weights: str | Path | None = None, metrics: Iterable[str] = METRICS, levels: int | None = None,
    device: str = "cpu", seed: int = 0, repeats: int = 20, batch: int = 256,
) -> SampleQuality:  # fmt: skip
    """What n real images get in the place of samples: the figures of a perfect model.

    Args:
        pool: Real images. Shape: (N, C, H, W), uint8.
        n: How many of them stand for samples, drawn anew each time.
        reference: Real images outside the pool, such as those of :func:`sample_quality`; or how many others of the
            pool are drawn to be the reference, by default n.
        extractor: As in ``sample_quality``; likewise weights, metrics, levels, device and batch.
        seed: Of the draws.
        repeats: How many draws.

    Returns:
        Means over the draws. ``stderr`` is their standard deviation, which is that of one figure and not of the mean;
        where the reference stays, it makes good for draws that share images of a finite pool.

    Raises:
        ValueError: for a pool that is too small, or that holds the reference.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> real = floor(digits.train, 180, digits.test, metrics="fd")
        >>> 1 < real.value["fd"] < 3
        True
    """
    metrics, fixed = _asked(metrics), isinstance(reference, Tensor)
    eye = _Eye(extractor, weights, levels, device, batch)
    eye.check(pool=pool, **({"reference": reference} if fixed else {}))
    m = 0 if fixed else n if reference is None else int(reference)
    if n < FEWEST or n + m > len(pool) - fixed or (m < FEWEST and not fixed):
        raise ValueError(
            f"a pool of {len(pool)} images gives no floor for {n} of them{'' if fixed else f' and {m} others'}: "
            f"use {FEWEST} or more on each side, and fewer than there are"
        )
    if repeats < 2:
        raise ValueError(f"the spread of a floor needs two draws or more, got repeats={repeats}")
    if fixed and reference.shape[1:] == pool.shape[1:] and np.isin(_rows(reference), _rows(pool)).mean() > 0.05:
        raise ValueError("the reference lies in the pool: a floor needs images that the reference does not hold")
    x, logits = eye(pool)
    draws = _draws(len(x), n + m, repeats, stream(seed, 2))
    if fixed:
        found = _figures(x, logits, eye(reference)[0], draws, metrics, eye.spec.splits, seed)
    else:
        whole, each = torch.arange(n)[None], []
        for a, b in zip(draws[:, :n], draws[:, n:], strict=True):
            each.append(_figures(x[a], logits[a], x[b], whole, metrics, eye.spec.splits, seed))
        found = {metric: np.concatenate([one[metric] for one in each]) for metric in metrics}
    wider = (1 - n / len(x)) ** -0.5 if fixed else 1.0
    return SampleQuality(
        extractor, n, len(reference) if fixed else m, {k: float(v.mean()) for k, v in found.items()},
        {k: float(v.std(ddof=1)) * wider for k, v in found.items()},
    )  # fmt: skip
