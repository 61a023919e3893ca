r"""Sample quality of images: Frechet distance, kernel distance, Inception score, precision and recall.

The metrics are computed with torch-fidelity from the features of an extractor: the project's own classifier for digits,
or Inception-v3 for photographs (from a file of weights given by the user). With means and covariances of the features
(Heusel et al. 2017, Eq. 6)

.. math:: \mathrm{FD} = |\mu_1-\mu_2|^2 + \mathrm{tr}\,(\Sigma_1 + \Sigma_2 - 2(\Sigma_1\Sigma_2)^{1/2}) .

The Frechet distance of n images is too large by about c/n, also for real images: it can only be interpreted next to
that of :func:`real_images` at the same n. Covariances of no more images than features are singular; torch-fidelity does
not regularise them, but sums the square roots of the eigenvalues of their product, to which a null space contributes 0.
The kernel distance (KID; Binkowski et al. 2018) is computed over all pairs rather than torch-fidelity's random subsets.
It is unbiased for independent images; the splits of digits are stratified by class, which puts real images slightly
below 0. Precision and recall (Kynkaanniemi et al. 2019) use three neighbours. No metric distinguishes good samples from
copies of the training images.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from psmlib.evaluation.feature_extractors import EXTRACTORS, METRICS, Extractor, byte_rows
from psmlib.machine.streams import stream
from psmlib.standard_errors import Estimate

MIN_IMAGES = 8  # each half of the samples must have three neighbours for every image


@dataclass(frozen=True)
class SampleQuality:
    """Result of :func:`sample_quality` and :func:`real_images`.

    Attributes:
        extractor: "digits" or "inception-v3-compat".
        samples: Number of samples.
        reference: Number of reference images.
        value: Value of each metric.
        stderr: Its standard error, that of new samples of the same number with the same reference.
    """

    extractor: str
    samples: int
    reference: int
    value: dict[str, float]
    stderr: dict[str, float]

    @property
    def names(self) -> dict[str, str]:
        """Names of the metrics; "FID" only with Inception-v3.

        Example:
            >>> SampleQuality("digits", 500, 359, {}, {}).names["fd"]
            'FD-digits'
        """
        return EXTRACTORS[self.extractor].names


def _check_images(levels: int, **sides: Tensor) -> None:
    """Raises ValueError for images that are not levels, too few, or of different sizes."""
    for what, images in sides.items():
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"{what} must be uint8 levels (n, C, H, W), got {got}: use the data's quantise")
        if len(images) < MIN_IMAGES or not images[0].numel():
            raise ValueError(f"{what} must be {MIN_IMAGES} images or more, got shape {tuple(images.shape)}: give more")
        if (top := int(images.max())) >= levels:
            fault = f"{what} has level {top} where {levels} levels end at {levels - 1}"
            raise ValueError(f"{fault}: give the right number of levels")
    sizes = {what: tuple(images.shape[2:]) for what, images in sides.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"images differ in height and width ({sizes}): give samples the size of the reference")


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The cubic kernel of KID. Shapes: (n, d), (m, d) -> (n, m)."""
    k = x @ y.T / x.shape[1] + 1
    return k * k * k


def _mean_within(x: Tensor, subsets: Tensor) -> Tensor:
    """Mean kernel over all pairs of different images in each subset of x. Shapes: (n, d), (r, s) -> (r,)."""
    chosen, total = torch.zeros(len(x), len(subsets), dtype=x.dtype), x.new_zeros(len(subsets))
    chosen.scatter_(0, subsets.T, 1.0)
    for rows in torch.arange(len(x)).split(1024):  # in pieces: the whole matrix of 50,000 images would take 20 GB
        k = _kernel(x[rows], x)
        k[torch.arange(len(rows)), rows] = 0
        total += (chosen[rows] * (k @ chosen)).sum(0)
    return total / (subsets.shape[1] * (subsets.shape[1] - 1))


def _kid(x: Tensor, y: Tensor, subsets: Tensor) -> Tensor:
    """Kernel distance of each subset of x from y, over all pairs. Shapes: (n, d), (m, d), (r, s) -> (r,)."""
    cross = torch.cat([_kernel(rows, y).mean(1) for rows in x.split(1024)])
    return _mean_within(x, subsets) + _mean_within(y, torch.arange(len(y))[None]) - 2 * cross[subsets].mean(1)


def _metrics(x: Tensor, logits: Tensor, y: Tensor, subsets: Tensor, metrics, splits: int, seed: int) -> dict:
    """Metrics of subsets of the samples, given by rows. Shapes: (n, F), (n, classes), (m, F), (r, s) -> (r,)."""
    found = {metric: [] for metric in metrics}
    if "kid" in metrics:
        found["kid"] = _kid(x, y, subsets).tolist()
    real = fid_features_to_statistics(y) if "fd" in metrics else None
    for rows in subsets:
        if real is not None:
            distance = fid_statistics_to_metric(fid_features_to_statistics(x[rows]), real, False)
            found["fd"].append(distance[KEY_METRIC_FID])
        if "is" in metrics:
            parts = max(1, min(splits, len(rows) // 500))
            found["is"].append(isc_features_to_metric(logits[rows], parts, True, seed)[KEY_METRIC_ISC_MEAN])
        if "precision" in metrics or "recall" in metrics:
            both = prc_features_to_metric(x[rows], y, save_cpu_ram=True, prc_batch_size=2048, verbose=False)
            for metric in {"precision", "recall"} & set(metrics):
                found[metric].append(both[metric])
    return {metric: np.array(values) for metric, values in found.items()}


def _random_subsets(n: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows of random subsets, drawn without replacement. Shape: (count, size)."""
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(count)])


def _check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
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
    r"""Sample quality of generated images compared with real ones; the module's docstring describes the metrics.

    A standard error is the standard deviation over random halves of the samples (delete-half jackknife): for a metric
    linear in the n samples, a subset of size s has the variance :math:`\sigma^2(1/s - 1/n)` and the whole set
    :math:`\sigma^2/n`. It is correct for bad samples, and up to :math:`\sqrt 3` too large for "fd", "kid" and "is" near
    those of real images, where these metrics are quadratic. Nothing is printed or downloaded, torch's global generator
    is not used, and the order of the images does not matter.

    Args:
        samples: Integer grey levels. Shape: (n, C, H, W), uint8; for digits (n, 1 or 3, 8, 8).
        reference: Real images, likewise.
        extractor: "digits" (metrics named FD-digits and so on) or "inception-v3-compat" (FID and so on).
        weights: Path of Inception-v3's weights; see :func:`psmlib.evaluation.feature_extractors.inception_weights`.
        metrics: Which of "fd", "kid", "is", "precision" and "recall".
        levels: Number of grey levels; by default 17 for digits, and else 256.
        device: Device on which the features are computed.
        seed: Seed of the halves, and of the parts over which the Inception score is averaged.
        repeats: Number of halves for the standard errors; by default 100, or 10 for many images or features.
        batch: Images at a time.

    Returns:
        A :class:`SampleQuality`.

    Raises:
        ValueError: for images that are not levels, too few or of another size, unknown names, or wrong weights.
        FileNotFoundError: when Inception-v3's weights are missing.

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
    metrics, extract = _check_metrics(metrics), Extractor(extractor, weights, levels, device, batch)
    _check_images(extract.levels, samples=samples, reference=reference)
    (x, logits), (y, _) = extract(samples), extract(reference)
    n, half = len(x), len(x) // 2
    repeats = (100 if max(n, len(y)) <= 4000 and x.shape[1] <= 256 else 10) if repeats is None else repeats
    if repeats < 2:
        raise ValueError(f"a standard error needs two halves or more, got repeats={repeats}")
    whole = _metrics(x, logits, y, torch.arange(n)[None], metrics, extract.spec.splits, seed)
    halves = _random_subsets(n, half, repeats, stream(seed, 1))
    halves = _metrics(x, logits, y, halves, metrics, extract.spec.splits, seed)
    stderr = {k: float(v.std(ddof=1)) * (half / (n - half)) ** 0.5 for k, v in halves.items()}
    return SampleQuality(extractor, n, len(y), {k: float(v[0]) for k, v in whole.items()}, stderr)


def real_images(
    pool: Tensor, n: int, reference: Tensor | int | None = None, *, extractor: str = "digits",
    weights: str | Path | None = None, metrics: Iterable[str] = METRICS, levels: int | None = None,
    device: str = "cpu", seed: int = 0, repeats: int = 20, batch: int = 256,
) -> SampleQuality:  # fmt: skip
    """The metrics of n real images in place of the samples, as a perfect model would get them.

    Args:
        pool: Real images. Shape: (N, C, H, W), uint8.
        n: Number of images of the pool that replace the samples, drawn anew each time.
        reference: Real images outside the pool, such as those of :func:`sample_quality`; or the number of other images
            of the pool that are drawn as the reference, by default n.
        extractor: As in ``sample_quality``; likewise weights, metrics, levels, device and batch.
        seed: Seed of the draws.
        repeats: Number of draws.

    Returns:
        Means over the draws. ``stderr`` is their standard deviation, that of one draw and not of the mean; with a fixed
        reference it is corrected for the overlap of draws from a finite pool.

    Raises:
        ValueError: for a pool that is too small or contains the reference.

    Example:
        >>> from psmlib.data.images import load
        >>> digits = load("digits")
        >>> real = real_images(digits.train, 180, digits.test, metrics="fd")
        >>> 1 < real.value["fd"] < 3
        True
    """
    metrics, fixed = _check_metrics(metrics), isinstance(reference, Tensor)
    extract = Extractor(extractor, weights, levels, device, batch)
    _check_images(extract.levels, pool=pool, **({"reference": reference} if fixed else {}))
    m = 0 if fixed else n if reference is None else int(reference)
    if n < MIN_IMAGES or n + m > len(pool) - fixed or (m < MIN_IMAGES and not fixed):
        wanted = f"{n} of them{'' if fixed else f' and {m} others'}"
        fault = f"a pool of {len(pool)} images is too small to draw {wanted} anew each time"
        raise ValueError(f"{fault}: use {MIN_IMAGES} or more on each side, and fewer than there are")
    if repeats < 2:
        raise ValueError(f"the spread over draws needs two draws or more, got repeats={repeats}")
    if fixed and reference.shape[1:] == pool.shape[1:] and np.isin(byte_rows(reference), byte_rows(pool)).mean() > 0.05:
        raise ValueError("the reference lies in the pool: real images in place of samples must be other ones")
    (x, logits), settings = extract(pool), (metrics, extract.spec.splits, seed)
    draws = _random_subsets(len(x), n + m, repeats, stream(seed, 2))
    if fixed:
        found = _metrics(x, logits, extract(reference)[0], draws, *settings)
    else:
        pairs, whole = zip(draws[:, :n], draws[:, n:], strict=True), torch.arange(n)[None]
        each = [_metrics(x[a], logits[a], x[b], whole, *settings) for a, b in pairs]
        found = {metric: np.concatenate([one[metric] for one in each]) for metric in metrics}
    wider = (1 - n / len(x)) ** -0.5 if fixed else 1.0
    stderr = {k: float(v.std(ddof=1)) * wider for k, v in found.items()}
    value = {k: float(v.mean()) for k, v in found.items()}
    return SampleQuality(extractor, n, len(reference) if fixed else m, value, stderr)


def over_seeds(found: Sequence[SampleQuality], metric: str) -> Estimate:
    """Mean of one metric over several networks, with the larger of two errors.

    One is of the spread between networks, the other that of the samples of each; with a few networks the first can come
    out smaller than the second by chance alone.

    Args:
        found: The quality of each network's samples.
        metric: Such as "fd".

    Example:
        >>> pair = [SampleQuality("digits", 100, 359, {"fd": v}, {"fd": .1}) for v in (1., 3.)]
        >>> over_seeds(pair, "fd"), over_seeds(pair[:1], "fd")
        ((2.0, 1.0), (1.0, 0.1))
    """
    values, n, m = np.array([f.value[metric] for f in found]), found[0].samples, len(found)
    within = float(np.mean([f.stderr[metric] ** 2 for f in found]))
    between = float(values.var(ddof=1)) if m > 1 else 0.0
    df = m - 1 if between > within else m * (n - 1)
    return Estimate(float(values.mean()), math.sqrt(max(between, within) / m), df, n, m)
