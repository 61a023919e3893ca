"""Algorithm 1 of the Multistage paper: time and memory for all its triples (data point, noise, time).

:func:`psmlib.clustering.split` by the optimal denoiser, three intervals, threshold .9, eta 2/255, VP with beta from .1
to 20, float32; on the 1,797 digits and on 5,000 photograph crops of 3 x 32 x 32. Each triple is denoised three times:
at its time, again at its time for the other end, and at T. The baseline computes the matrix of all weights of 4,096
triples at a time by torch.cdist and softmax. Both get the same draws and take turns, with another seed each turn; their
borders must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from psmlib.benchmarks.timing import Row, agreement, interleave, rows, work_space
from psmlib.clustering import split
from psmlib.data.images import load
from psmlib.exact.finite_set import DiffusedData
from psmlib.process import VP, Process, as_time
from psmlib.score import Score

TOLERANCE = 2e-3


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        digits: Triples on the digits.
        patches: Photograph crops that are the data.
        triples: Triples on the crops.
        rounds: Turns of each contestant.
    """

    digits: int = 20_000
    patches: int = 5_000
    triples: int = 2_000
    rounds: int = 3


SCALES = {
    "smoke": Settings(digits=400, patches=100, triples=400, rounds=5),
    "quick": Settings(),
    "full": Settings(rounds=11),
}


class FullSoftmax(Score):
    """The optimal denoiser in torch operations, with the matrix of all weights."""

    def __init__(self, data: Tensor, process: Process):
        self.data, self.process = data, process

    @property
    def tensor_options(self) -> dict:
        return {"dtype": self.data.dtype, "device": self.data.device}

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        t = as_time(t, x)
        alpha, sigma = (c.to(x).reshape(-1, 1) for c in (self.process.alpha(t), self.process.sigma(t)))
        apart = torch.cdist(x / alpha, self.data)
        weights = torch.softmax(-0.5 * (apart * alpha / sigma).square(), 1)
        return (x - alpha * (weights @ self.data)) / sigma


def cases(settings: Settings) -> Iterator[tuple[str, Tensor, int]]:
    """Name, data in [0, 1] and triples."""
    digits = load("digits")
    images = torch.cat([digits.train, digits.validation, digits.test])
    yield "digits", images.flatten(1).float() / (digits.levels - 1), settings.digits
    photos = load("photos32")
    yield "photos32", photos.train[: settings.patches].flatten(1).float() / (photos.levels - 1), settings.triples


def measure(name: str, data: Tensor, triples: int, rounds: int) -> Iterator[Row]:
    """All rows of one data set.

    Raises:
        RuntimeError: when the contestants differ by more than 2e-3 in a border.
    """
    process = VP(0.1, 20.0)
    scores = {"full softmax": FullSoftmax(data, process), "psmlib": DiffusedData(data, process)}
    borders: dict[str, list] = {method: [] for method in scores}

    def turn(method: str, seed: int) -> None:
        borders[method].append(split(score=scores[method], data=data, samples=triples, seed=seed))

    calls = {method: partial(turn, method) for method in scores}
    taken = interleave(calls, rounds)
    case = f"{name}, {len(data):,} x {data.shape[1]:,}, Algorithm 1 with {triples:,} triples"
    notes = {"full softmax": "torch.cdist, softmax and a product", "psmlib": "psmlib.clustering.split"}
    yield from rows(case, taken, "full softmax", notes, work=triples, measure="triples a second")
    for method, each in taken.items():
        yield Row.timed(case, method, "time for all triples", "s", each, float, note=notes[method])
    note = f"tensors beside the data, which have {data.nbytes / 2**20:.1f} MiB"
    for method, call in calls.items():
        held, _ = work_space(partial(call, 0), "cpu", known=[data])
        yield Row.single(case, method, "most memory at a time", "MiB", held / 2**20, note=note)
    naive, ours = (torch.tensor(each) for each in borders.values())  # (turns, 2)
    for label, border in zip(("t1", "t2"), ours[:-1].T, strict=True):
        note = f"mean of {len(border)} seeds, between which the standard deviation is {float(border.std()):.2g}"
        yield Row.single(case, "psmlib", label, "1", float(border.mean()), note=note)
    largest = float((naive - ours).abs().max())
    note = f"over all seeds; must be at most {TOLERANCE:g}"
    row = Row.single(case, "psmlib", "largest difference of a border", "1", largest, note=note)
    yield from agreement(row, TOLERANCE, "borders of psmlib and the full softmax", "psmlib.kernels.online_posterior")


def run(settings: Settings) -> Iterator[Row]:
    """Measures on both data sets.

    Raises:
        RuntimeError: when the contestants differ by more than 2e-3 in a border.
    """
    for name, data, triples in cases(settings):
        yield from measure(name, data, triples, settings.rounds)
