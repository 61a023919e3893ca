"""Engines differ by rounding alone; a bank equals its networks trained one by one, whatever engine and sharding."""

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.mlp_bank import Bank
from psmlib.data.toys import HG
from psmlib.kernels.bank_updates import BankUpdates
from psmlib.machine.cuda_graph import Captured
from psmlib.nets import ronneberger, unet
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import fit

F64 = torch.float64
P = VP(0.0, 10.0)
BLOCKS = Partition([0, 0.02, 0.1, 0.3, 1])
NET = Plain(hidden=(9, 12, 8))


class Fresh:
    """A density that cannot be drawn from words."""

    def sample(self, n, generator):
        return HG().sample(n, generator)


def run(bank: Bank, stop: int | None = None, data=None, **kw):
    """Trains; returns parameters, moving average and the loss of every chunk."""
    kw = {"updates": 120, "batch_size": 16, "ema": 0.9, **kw}
    losses = []
    for progress in fit(bank, data or HG(), P, BLOCKS, **kw):
        losses.append(progress.loss)
        if stop is not None and progress.update >= stop:
            break
    return bank.params, progress.average.params, torch.stack(losses)


@pytest.mark.parametrize("data", [HG(), Fresh()], ids=["words", "generator"])
@pytest.mark.parametrize("arch", [NET, Conditioned(hidden=(9, 8), octaves=2)], ids=["plain", "conditioned"])
def test_products_equal_the_loop(arch, data):
    one, other = (run(Bank(arch, 4, dtype=F64), data=data, engine=engine) for engine in ("loop", BankUpdates))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("engine", ["loop", "products"])
@pytest.mark.parametrize("data", [HG(), Fresh()], ids=["words", "generator"])
def test_a_bank_equals_its_parts(engine, data):
    whole = run(Bank(NET, 4, dtype=F64), engine=engine, data=data)
    cuts = [range(0, 1), range(1, 4)] if engine == "products" else [range(k, k + 1) for k in range(4)]
    parts = [run(Bank(NET, 4, dtype=F64, only=only), engine=engine, data=data) for only in cuts]
    for i, dim in enumerate((0, 0, 1)):
        torch.testing.assert_close(torch.cat([p[i] for p in parts], dim), whole[i], rtol=1e-9, atol=1e-11)


def test_resuming_finds_the_same_words(tmp_path):
    kw = dict(engine="products", path=tmp_path / "run.safetensors", save_every=50)
    whole = run(Bank(NET, 4, dtype=F64), **kw | dict(path=None))
    run(Bank(NET, 4, dtype=F64), stop=50, **kw)
    again = run(Bank(NET, 4, dtype=F64), resume=True, **kw)
    for a, b in zip(whole[:2], again[:2], strict=True):
        assert torch.equal(a, b)


def test_soap_steps_all_networks_without_a_graph():
    one, other = (run(Bank(NET, 4, dtype=F64), engine=e, optimiser="soap", lr=1e-3) for e in ("loop", "products"))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("net", [unet.small(dim=8, dtype=F64), ronneberger.small(a=4, dtype=F64)], ids=["unet", "dpsm"])
def test_the_graph_slot_equals_the_loop(net):
    """Float64, where rounding stays below Adam's epsilon on parameters that have no gradient."""
    data, found = torch.rand(40, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0)), []
    for engine in ("loop", "graph"):
        bank, losses = ImageBank(net, 3), []
        for progress in fit(bank, data, VP(), Partition.equal(3), updates=70, batch_size=8, ema=0.9, engine=engine):
            losses.append(progress.loss)
        average = progress.average
        found.append((bank.params, bank.buffers, torch.stack(losses), average.params, average.buffers))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "bank, kw, message",
    [
        (Bank(NET, 4), dict(engine="graph"), "unknown engine 'graph' of a Bank: use one of auto, loop"),
        (ImageBank(unet.small(dim=8, dropout=0.1), 4), dict(engine="graph"), "a graph cannot draw dropout"),
        (Bank(Plain(hidden=(9, 8)), 4), dict(engine="fused"), "three hidden layers in float32"),
    ],
    ids=["engine", "dropout", "shape"],
)
def test_refusals(bank, kw, message):
    data = torch.zeros(5, 1, 8, 8) if isinstance(bank, ImageBank) else HG()
    with pytest.raises(ValueError, match=message):
        next(fit(bank, data, P, BLOCKS, updates=50, batch_size=4, **kw))


def test_captured_calls_where_there_is_no_graph():
    x, calls = torch.zeros(3), []
    step = Captured(lambda: (x.add_(1), calls.append(1)), "cpu", [x])
    assert not calls  # nothing is run before it is asked for
    step()
    step()
    assert x.tolist() == [2, 2, 2] and len(calls) == 2


def test_fused_training_in_the_interpreter(interpreted):
    """The whole way: counter-based words, both kernels, some updates; the losses of the loop."""
    loop, fused = interpreted("""
import json, torch
from psmlib.data.toys import HG
from psmlib.bank.mlp_bank import Bank
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import fit
out = []
for engine in ("loop", "fused"):
    bank = Bank(Plain(hidden=(9, 12, 8)), 2)
    for p in fit(bank, HG(), VP(0., 10.), Partition([0, .1, 1]), updates=8, batch_size=9, ema=.9, engine=engine):
        pass
    out.append([p.loss.tolist(), bank.params.mean(1).tolist(), p.average.params.mean(1).tolist()])
print(json.dumps(out))
""")
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(loop), rtol=1e-4, atol=1e-6)
