"""Early stopping: each network keeps its own best snapshot."""

from __future__ import annotations

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.data.images import load
from psmlib.evaluation.early_stopping import best_stops, block_times, validation_losses
from psmlib.nets import ronneberger, unet
from psmlib.partition import SA, TPSM_A, Partition
from psmlib.process import VP

P = VP(0.0, 10.0)
DIGITS = load("digits")


def bank(size=2, seed=0):
    return ImageBank(unet.small(dim=8, dtype=torch.float64), size, seed=seed)


@pytest.mark.parametrize("n", [1, 4])
def test_block_times_halve_equal_stretches_of_log_snr(n):
    for k in range(2):
        times = torch.tensor(block_times(TPSM_A, P, k, n, 1e-3), dtype=torch.float64)
        lo, hi = max(TPSM_A.bounds(k)[0], 1e-3), TPSM_A.bounds(k)[1]
        ends = P.log_snr(torch.tensor([lo, hi], dtype=torch.float64))
        middles = ends[0] + (ends[1] - ends[0]) * (torch.arange(n).double() + 0.5) / n
        torch.testing.assert_close(P.log_snr(times), middles, rtol=0, atol=1e-6)


def test_a_point_stands_for_itself():
    assert block_times(Partition.points(4), P, 2, 4, 1e-3) == [0.75]


def test_the_loss_of_a_network_that_knows_nothing_is_that_of_the_noise():
    still = bank()
    still.params.zero_()
    loss = validation_losses(still, DIGITS, TPSM_A, P, limit=100)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.ones(2, dtype=torch.float64), rtol=0, atol=0.05)
    assert float(loss[0]) == float(loss[1]), "every block is asked about the same noise"


def test_the_loss_is_the_mean_square_error_at_the_times_of_the_block():
    made = bank(1)
    generator = torch.Generator().manual_seed(7)
    x0 = DIGITS.dequantise(DIGITS.validation[:5], generator, centred=True)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    errors = []
    for t in block_times(SA, P, 0, 3, 1e-2):
        x = P.alpha(torch.tensor(t).double()) * x0 + P.sigma(torch.tensor(t).double()) * eps
        net = made.network(0)
        errors.append((net(x, net.time_of(torch.tensor(t).double(), P)) - eps).square().mean())
    found = validation_losses(made, DIGITS, SA, P, times=3, t_min=1e-2, limit=5, seed=7)
    torch.testing.assert_close(found[0], torch.stack(errors).mean())


def test_each_network_keeps_its_own_best():
    early, late = bank(seed=1), bank(seed=2)
    still = torch.zeros_like(early.params[0])  # an error of one: better than a loud network
    early.params[0], late.params[1] = still, still
    for loud in (early.params[1], late.params[0]):
        loud.mul_(3)
    best, stops = best_stops({100: late, 50: early}, DIGITS, TPSM_A, P, limit=20)
    assert stops == [50, 100]
    assert bool((best.params == 0).all())
    before = late.params.clone()
    best.params.fill_(1.0)
    assert torch.equal(late.params, before), "a new bank"


def test_running_statistics_come_along():
    points = Partition.points(2)
    nets = {s: ImageBank(ronneberger.small(a=4, dtype=torch.float64), 2, seed=s) for s in (50, 100)}
    for stop, made in nets.items():
        made.buffers.fill_(float(stop))
        made.params.zero_()
    nets[50].params[0] += 100.0  # far off
    best, stops = best_stops(nets, DIGITS, points, P, limit=6)
    assert stops[0] == 100 and best.buffers[0].unique().tolist() == [100.0]
    assert best.buffers[1].unique().tolist() == [float(stops[1])]


def test_no_snapshots():
    with pytest.raises(ValueError, match="no snapshots to choose from: train with stops"):
        best_stops({}, DIGITS, SA, P)
