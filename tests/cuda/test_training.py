"""Training, likelihood and sampling on a CUDA device: the course of a CPU, and parts that equal the whole."""

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG, load_toy
from psmlib.likelihood import log_likelihood
from psmlib.nets import ronneberger, unet
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow
from psmlib.sampling import grids, last, ode, sde
from psmlib.training import fit, snapshots
from psmlib.training.times import LogUniform

P = VP(0.0, 10.0)
BLOCKS = Partition([0, 0.02, 0.1, 0.3, 1])
F64 = torch.float64


def run(bank, stop=None, data=None, process=P, partition=BLOCKS, **kw):
    """Trains; returns parameters, moving average and the loss of every chunk, on the CPU."""
    losses = []
    kw = {"updates": 120, "batch_size": 64, "ema": 0.9, **kw}
    for progress in fit(bank, HG() if data is None else data, process, partition, **kw):
        losses.append(progress.loss.cpu())
        if stop is not None and progress.update >= stop:
            break
    return bank.params.cpu(), progress.average.params.cpu(), torch.stack(losses)


@pytest.mark.parametrize("engine", ["loop", "products"])
@pytest.mark.parametrize("arch", [Plain(hidden=(9, 12, 8)), Conditioned(hidden=(9, 8), octaves=2)],
                         ids=["plain", "conditioned"])  # fmt: skip
def test_engines_train_as_on_a_cpu(arch, engine):
    """Same words, double precision."""
    there = run(Bank(arch, 4, dtype=F64), engine="loop")
    here = run(Bank(arch, 4, dtype=F64, device="cuda"), engine=engine)
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_fused_losses_are_those_of_products():
    fused, plain = (run(Bank(Plain(), 4, device="cuda"), engine=e, updates=200)[2] for e in ("auto", "products"))
    torch.testing.assert_close(fused, plain, rtol=0.02, atol=0)


def test_flow_matching_trains():
    bank = Bank(Plain(), 3, native="velocity", device="cuda")
    losses = run(bank, process=OTFlow(), partition=Partition.equal(3), updates=300, batch_size=256)[2]
    assert bool((losses[-1] < losses[0]).all())


@pytest.mark.parametrize("engine", ["fused", "products"])
def test_a_bank_equals_its_parts(engine):
    whole = run(Bank(Plain(), 4, device="cuda"), engine=engine)
    parts = [run(Bank(Plain(), 4, device="cuda", only=only), engine=engine) for only in (range(0, 1), range(1, 4))]
    for i, dim in enumerate((0, 0, 1)):
        joined = torch.cat([p[i] for p in parts], dim)
        if engine == "fused":  # a program's sums do not depend on how many others there are
            assert torch.equal(joined, whole[i])
        torch.testing.assert_close(joined, whole[i], rtol=1e-3, atol=1e-4)


def test_resuming_finds_the_same_bits(tmp_path):
    kw = dict(path=tmp_path / "run.safetensors", save_every=50)
    whole = run(Bank(Plain(), 4, device="cuda"))
    run(Bank(Plain(), 4, device="cuda"), stop=50, **kw)
    again = run(Bank(Plain(), 4, device="cuda"), resume=True, **kw)
    for a, b in zip(whole[:2], again[:2], strict=True):
        assert torch.equal(a, b)


def test_soap_trains():
    bank = Bank(Conditioned(), 4, device="cuda")
    losses = run(bank, optimiser="soap", lr=1e-2, schedule="one_cycle", times=LogUniform(0.5), updates=200)[2]
    assert float(losses[-1].mean()) < float(losses[0].mean())


def test_snapshots_stay_on_the_device(tmp_path):
    given = dict(stops=[50, 100], batch_size=16, folder=tmp_path)
    first, again = (snapshots.train(Bank(Plain(), 4, device="cuda"), HG(), P, BLOCKS, **given) for _ in range(2))
    for stop in (50, 100):
        assert again.banks[stop].device.type == "cuda"
        assert torch.equal(first.banks[stop].params, again.banks[stop].params)


@pytest.mark.parametrize("net", [unet.small(dim=8, dtype=F64), ronneberger.small(a=4, dtype=F64)], ids=["unet", "dpsm"])
def test_the_graph_slot_equals_the_loop(net):
    data, found = torch.rand(40, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0)), []
    for engine, device in (("loop", "cpu"), ("loop", "cuda"), ("graph", "cuda")):
        bank, losses = ImageBank(net, 3).to(device), []
        moved = data.to(device)
        for progress in fit(bank, moved, VP(), Partition.equal(3), updates=70, batch_size=8, ema=0.9, engine=engine):
            losses.append(progress.loss)
        average = progress.average
        tensors = bank.params, bank.buffers, torch.stack(losses), average.params, average.buffers
        found.append([t.cpu() for t in tensors])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "arch, native, process, partition, method, grid",
    [
        (Plain(), "eps", P, BLOCKS, "rk4", "warped"),
        (Plain(), "velocity", OTFlow(), Partition.equal(3), "rk4", "uniform"),
        (Plain(times=0), "eps", P, Partition.points(5), "euler", "blocks"),
        (Conditioned(), "eps", P, BLOCKS, "rk4", "warped"),
        (Plain(), "eps", P, BLOCKS, "heun", "uniform"),
    ],
    ids=["blocks", "flow matching", "points", "conditioned", "heun"],
)
def test_likelihoods_are_those_of_float64(arch, native, process, partition, method, grid):
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    bank = Bank(arch, len(partition), native=native)
    kw = dict(t0=0.01, steps=25, method=method, grid=grid)
    exact = log_likelihood(bank.to(dtype=F64).score(partition, process), process, x.double(), **kw)
    plain = log_likelihood(bank.score(partition, process), process, x, **kw)
    found = log_likelihood(bank.to("cuda").score(partition, process), process, x.cuda(), **kw)
    assert found.nfe == exact.nfe
    errors = [float((each.log_prob.cpu().double() - exact.log_prob).abs().max()) for each in (found, plain)]
    assert errors[0] <= 2 * errors[1] + 2e-5


@pytest.mark.parametrize("divergence", ["hutchinson", "logdet"])
def test_other_divergences(divergence):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    bank = Bank(Plain(), len(BLOCKS), dtype=F64)
    kw = dict(t0=0.01, steps=25, method="euler", divergence=divergence)
    here, there = (
        log_likelihood(b.score(BLOCKS, P), P, x.to(b.device), **kw).log_prob.cpu() for b in (bank, bank.to("cuda"))
    )
    torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-9)


def test_samplers_and_exact_scores():
    toy = load_toy("HG")
    exact, times = toy.diffused(P), grids.quadratic(1e-3, 1.0, 30).flip(0)
    noise = P.prior_sample(500, (2,), torch.Generator().manual_seed(1))
    here, there = (last(ode(exact, P, z, times)).x.cpu() for z in (noise, noise.cuda()))
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-7)
    drawn = last(sde(exact, P, noise.cuda(), times, generator=torch.Generator().manual_seed(2))).x
    assert drawn.device.type == "cuda" and bool(drawn.isfinite().all())
    x = noise.cuda()
    torch.testing.assert_close(exact.log_prob(x, 0.1).cpu(), exact.log_prob(noise, 0.1))
    torch.testing.assert_close(toy.log_prob(x).cpu(), toy.log_prob(noise))


@pytest.mark.parametrize("net", [unet.small(dim=8), unet.small(dim=16), ronneberger.small(a=4), ronneberger.small(a=5)])
def test_image_scores_in_single_precision(net):
    """Weights of all sizes: windows on a row that no kernel may find crooked."""
    bank = ImageBank(net, 3)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    partition = Partition.points(3) if isinstance(net, ronneberger.Ronneberger) else Partition.equal(3)
    for t in (0.1, 0.5, 0.9):
        said = [b.score(partition, P).predict_quadratic(x.to(b.device), t, torch.ones_like(x).to(b.device))
                for b in (bank, bank.to("cuda"))]  # fmt: skip
        for a, b in zip(*said, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=0.02, atol=0.02 * float(a.abs().max()))


@pytest.mark.parametrize("engine", ["loop", "graph"])
@pytest.mark.parametrize("net", [unet.small(dim=8), ronneberger.small(a=5)], ids=["unet", "dpsm"])
def test_image_networks_train_in_single_precision(net, engine):
    data = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    losses = [p.loss for p in fit(ImageBank(net, 3).to("cuda"), data, VP(), Partition.equal(3), updates=200,
                                  batch_size=16, lr=5e-3, engine=engine)]  # fmt: skip
    assert bool((losses[-1] < losses[0]).all())
