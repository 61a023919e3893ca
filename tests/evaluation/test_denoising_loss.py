"""Denoising losses compared with closed forms and with a computation by hand."""

import math

import pytest
import torch

from psmlib.data.images import load
from psmlib.evaluation.denoising_loss import denoising_losses
from psmlib.evaluation.reference_densities import Gaussian
from psmlib.exact.finite_set import DiffusedData
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow

F64 = torch.float64
PSM = VP(0.0, 10.0)


def test_losses_of_a_gaussian_in_closed_form():
    images, times = load("digits"), [0.02, 0.3]
    score = Gaussian(images, 0.0).diffused(PSM, -images.centre)
    rows = denoising_losses(score, images, times, draws=2)
    for row, t in zip(rows, times, strict=True):
        signal = float(PSM.alpha(t)) ** 2 * score.values  # a linear denoiser's loss knows second moments only
        want = float((signal / (signal + float(PSM.sigma(t)) ** 2)).mean())
        assert abs(row.train - want) < 4 * row.train_stderr and row.train_stderr < 0.02 * want
        assert row.t == t and row.block is None
        assert row.gap == pytest.approx(row.test - row.train, abs=1e-12)
        assert row.gap_stderr == pytest.approx(math.hypot(row.test_stderr, row.train_stderr))
        assert row.excess == pytest.approx(row.train - row.optimal, abs=1e-12)
        assert row.excess > 4 * row.excess_stderr and row.optimal_gap > row.gap + 3 * row.optimal_gap_stderr * (t < 0.1)


def test_noise_is_shared():
    images, seen = load("digits"), []

    class Spy(DiffusedData):
        def eps(self, x, t):
            seen.append((t, x))
            return super().eps(x, t)

    spy = Spy(images.draws(centred=True).middles(), PSM)
    rows = denoising_losses(spy, images, [0.1, 0.2], optimal=spy, limit=200, batch=1000)
    assert [row.excess for row in rows] == [0, 0] == [row.excess_stderr for row in rows]
    noise, g = {}, torch.Generator().manual_seed(0)
    u = torch.rand(200, 1, 8, 8, generator=g, dtype=F64)
    eps = torch.randn(200, 1, 8, 8, generator=g, dtype=F64)
    for t, x in seen:
        noise.setdefault(t, []).append(x)
    pick = {split: getattr(images, split) for split in ("train", "validation", "test")}
    pick = {split: k[torch.linspace(0, len(k) - 1, 200).long()] if len(k) > 200 else k for split, k in pick.items()}
    wanted = {t: [PSM.perturb((k + u[: len(k)]) / 17 - images.centre, t, eps[: len(k)]) for k in pick.values()]
              for t in noise}  # fmt: skip
    for t, parts in noise.items():
        for x in wanted[t]:  # validation images, 180, have the first of the same noise
            assert any(x.shape == y.shape and torch.allclose(x, y, atol=1e-12) for y in parts)
    errors = (spy.eps(wanted[0.1][2], 0.1) - eps).square().flatten(1).mean(1)
    assert rows[0].test == pytest.approx(float(errors.mean()), rel=1e-12)
    assert rows[0].test_stderr == pytest.approx(float(errors.std()) / 200**0.5, rel=1e-9)


def test_blocks_flat_points_and_other_dtypes():
    images = load("digits")
    score = DiffusedData(images.draws(flat=True, dtype=torch.float32).middles(), PSM)
    score.partition = Partition([0, 0.1, 1])
    rows = denoising_losses(score, images, [0.05, 0.1, 0.5], flat=True, centred=False, limit=20)
    assert [row.block for row in rows] == [0, 0, 1]
    double = DiffusedData(images.draws(centred=True).middles(), PSM)
    for a, b in zip(rows, denoising_losses(double, images, [0.05, 0.1, 0.5], limit=20, batch=7), strict=True):
        assert a.test == pytest.approx(b.test, rel=1e-3) and a.optimal == pytest.approx(b.optimal, rel=1e-6)


def test_an_optimum_of_another_process():
    images = load("digits")
    score = Gaussian(images, 0.0).diffused(PSM, -images.centre)
    with pytest.raises(ValueError, match="make it anew"):
        denoising_losses(score, images, [0.5], optimal=images.draws().diffused(OTFlow()))
