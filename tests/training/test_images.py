"""Training banks of image networks, against torch's own Adam on a plain module, and cut up in every way."""

import pickle

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.data.images import load
from psmlib.machine import memory
from psmlib.machine.memory import HeldBytes
from psmlib.machine.streams import stream
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow
from psmlib.training import CHUNK, Progress, fit, snapshots
from psmlib.training.batches import noised
from psmlib.training.image_steps import ImageSteps
from psmlib.training.objectives import Denoising, FlowMatching
from psmlib.training.optim import Adam
from psmlib.training.recipe import Recipe
from psmlib.training.times import LogUniform, Uniform

F64 = torch.float64
P = VP(0.0, 10.0)
THREE = Partition([0, 0.1, 0.4, 1])
TINY = dict(channels=1, blocks=1, attention=None, middle=None, groups=2, dtype=F64)
NETS = {
    "unet": UNet(4, (1,), **TINY),
    # a bias before a batch norm has no gradient but rounding, which Adam makes steps of
    "ronneberger": Ronneberger(2, 2, 1, bias=False, dtype=F64),
    "ronneberger, channels last": Ronneberger(2, 2, 1, bias=False, dtype=F64, channels_last=True),
}
NORMED = NETS["ronneberger, channels last"]
DROPPING = UNet(4, (1,), dropout=0.3, **TINY)
DATA = 0.5 + torch.randn(30, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def run(bank: ImageBank, partition=THREE, data=DATA, process=P, stop: int | None = None, **kw) -> Progress:
    """Trains for a few updates more than a chunk; with ``stop``, walks away after so many chunks."""
    kw = {"updates": CHUNK + 3, "batch_size": 4, **kw}
    for chunk, progress in enumerate(fit(bank, data, process, partition, **kw), 1):  # noqa: B007
        if chunk == stop:
            break
    return progress


def same(a: ImageBank, b: ImageBank) -> bool:
    return torch.equal(a.params, b.params) and torch.equal(a.buffers, b.buffers)


class Weighted(Uniform):
    """Late times count more."""

    weighted = True

    def weight(self, t, low, high):
        return 1 + t


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


# The steps of one network -----------------------------------------------------------------------------------


def reference(bank: ImageBank, k: int, recipe: Recipe):
    """Network k as a module of its own, under torch's Adam on the same batches, and its moving average."""
    net = bank.kind(**bank.settings, dtype=F64, seed=stream(bank.seed, k, 0)).train()
    optimiser, losses = torch.optim.Adam(net.parameters(), lr=1.0), []
    average = [p.detach().clone() for p in net.parameters()]
    B, decay = recipe.batch_size, recipe.ema
    for i in range(recipe.updates):
        if i % CHUNK == 0:
            x, t, target, weight = noised(bank, DATA, recipe, k, CHUNK, stream(0, k, 1, i // CHUNK))
        rows = slice(i % CHUNK * B, (i % CHUNK + 1) * B)
        error = (net(*net.inputs(x[rows], t[rows], recipe.process)) - target[rows]).square().mean((1, 2, 3))
        loss = (error if weight is None else weight[rows] * error).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = recipe.rate(i)
        optimiser.step()
        losses.append(loss.item())
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, net.parameters(), strict=True)]
    return net, average, torch.tensor(losses, dtype=F64)


@pytest.mark.parametrize(
    "name, objective, process, partition, n, times",
    [
        ("unet", Denoising(), P, THREE, CHUNK + 3, LogUniform(0.3, 1e-4)),
        ("unet", FlowMatching(), OTFlow(), THREE, 5, Weighted()),
        ("ronneberger", Denoising(), P, Partition.points(3), CHUNK + 3, Uniform()),
        ("ronneberger, channels last", FlowMatching(), OTFlow(), Partition.points(3), CHUNK + 3, Uniform()),
    ],
)
def test_every_network_takes_the_steps_of_a_module_under_torchs_adam(name, objective, process, partition, n, times):
    bank = ImageBank(NETS[name], 3, native=objective.native, seed=7)
    seen = []
    settings = dict(updates=n, batch_size=4, lr=3e-3, schedule="one_cycle", ema=0.9, objective=objective, times=times)
    for progress in fit(bank, DATA, process, partition, **settings):
        seen.append(progress.loss)
        assert progress.bank is bank
    for k in (2, 1):
        net, average, losses = reference(bank, k, Recipe(process, partition, **settings))
        for trained, params in ((bank, list(net.parameters())), (progress.average, average)):
            found = trained.network(k)
            for a, b in zip(found.parameters(), params, strict=True):
                torch.testing.assert_close(a.data, b.data, rtol=1e-9, atol=1e-12)
            for a, b in zip(found.buffers(), net.buffers(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(seen[0][k], losses[:CHUNK].mean())
        torch.testing.assert_close(seen[-1][k], losses[CHUNK if n > CHUNK else 0 :].mean())


@pytest.mark.parametrize("net, updates", [(NORMED, CHUNK + 3), (DROPPING, 5)], ids=["ronneberger", "dropout"])
def test_a_bank_equals_its_networks_and_its_parts_trained_apart(net, updates):
    whole = ImageBank(net, 3, seed=1)
    average = run(whole, ema=0.9, updates=updates).average
    for cuts in ([range(1), range(1, 2), range(2, 3)], [range(2, 3), range(2)]):
        parts, means = [], []
        for cut in cuts:
            part = pickle.loads(pickle.dumps(ImageBank(net, 3, seed=1, only=cut)))  # as another process gets it
            means.append(run(part, ema=0.9, updates=updates).average)
            parts.append(pickle.loads(pickle.dumps(part)))
        assert same(ImageBank.joined(parts), whole) and same(ImageBank.joined(means), average)
    assert not torch.equal(whole.params[0], whole.params[1]) and not torch.equal(average.params, whole.params)
    short, other = ImageBank(net, 3, seed=1), ImageBank(net, 3, seed=1)
    run(short, updates=5), run(other, updates=5, seed=1)
    assert not torch.equal(other.params, short.params), "the batches have a seed of their own"


@pytest.mark.parametrize("net, updates", [(NORMED, CHUNK + 3), (DROPPING, 20)], ids=["ronneberger", "dropout"])
def test_threads_change_nothing(net, updates):
    one, two = ImageBank(net, 3), ImageBank(net, 3)
    a, b = run(one, ema=0.9, updates=updates), run(two, ema=0.9, updates=updates, workers=2)
    assert same(one, two) and same(a.average, b.average) and torch.equal(a.loss, b.loss)


STOPS = {
    "ronneberger, mid-chunk": (NORMED, (7, 55, 58)),
    "ronneberger": (NORMED, (50, 58)),
    "dropout": (DROPPING, (3, 8)),
}


@pytest.mark.parametrize("net, stops", STOPS.values(), ids=STOPS)
def test_a_run_goes_on_exactly_where_it_was(net, stops, tmp_path):
    whole, kw = ImageBank(net, 3), {"ema": 0.9, "path": tmp_path / "run.st", "resume": True}
    last = run(whole, updates=stops[-1], ema=0.9)
    for seed, updates in enumerate(stops):
        bank = ImageBank(net, 3, seed=seed)  # from the second on, what counts is the checkpoint
        progress = run(bank, updates=updates, **kw)
    assert same(bank, whole) and same(progress.average, last.average)
    assert torch.equal(progress.loss, last.loss) == (50 in stops), "the loss is the mean since the last stop"


def test_a_run_that_was_left_goes_on_too(tmp_path):
    whole, kw = ImageBank(NORMED, 3), {"updates": 102, "path": tmp_path / "run.st", "save_every": 50}
    run(whole, **{**kw, "path": None})
    run(ImageBank(NORMED, 3), stop=1, **kw)
    bank = ImageBank(NORMED, 3, seed=9)
    run(bank, resume=True, **kw)
    assert same(bank, whole)


def test_a_checkpoint_of_another_part_is_refused(tmp_path):
    run(ImageBank(NORMED, 3, only=range(2)), path=tmp_path / "run.st")
    for bank in (ImageBank(NORMED, 3, only=range(1, 3)), ImageBank(NORMED, 3), ImageBank(NETS["ronneberger"], 3)):
        with pytest.raises(ValueError, match="run.st was made with .* but this run has") as error:
            run(bank, path=tmp_path / "run.st", resume=True)
        assert one_sentence(error)


# What training leaves behind --------------------------------------------------------------------------------


def test_running_statistics_move_in_training_alone_and_the_average_has_them():
    bank = ImageBank(NORMED, 3)
    before = bank.buffers.clone()
    average = run(bank, ema=0.9).average
    assert not bool((bank.buffers == before).all(1).any()), "those of every network have moved"
    assert torch.equal(average.buffers, bank.buffers)
    kept = bank.buffers.clone(), bank.params.clone()
    for trained in (bank, average):
        score = trained.score(THREE, P)
        x = DATA[:5]
        score.predict(x, 0.5), score.predict_quadratic(x, 0.05, x), score.predict_trace(x[:1], 0.2)
    assert torch.equal(bank.buffers, kept[0]) and torch.equal(average.buffers, kept[0])
    assert torch.equal(bank.params, kept[1])


def at_rest(bank: ImageBank) -> bool:
    """Whether the networks are ready for evaluation and hold no gradients."""
    nets = [bank.network(k) for k in range(len(bank))]
    return not any(m.training for net in nets for m in net.modules()) and not any(
        p.requires_grad or p.grad is not None for net in nets for p in net.parameters()
    )


def test_networks_are_at_rest_whenever_the_run_can_be_looked_at(monkeypatch):
    bank = ImageBank(NORMED, 3)
    for progress in fit(bank, DATA, P, THREE, updates=60, batch_size=4, ema=0.9):
        assert at_rest(bank) and at_rest(progress.average)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.nn.functional, "mse_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(bank)
    assert at_rest(bank)


def test_a_run_that_diverges_is_put_back_statistics_and_all():
    for lr, good in ((1e200, 0), (None, CHUNK)):
        bank, calls = ImageBank(NORMED, 3), []

        class Breaking:
            def sample(self, n, generator, calls=calls):
                calls.append(n)
                return DATA[:1].expand(n, -1, -1, -1) * (float("nan") if len(calls) > 5 else 1.0)

        data, kept = (Breaking(), {}) if lr is None else (DATA, {0: (bank.copy(), bank.copy())})
        with pytest.raises(FloatingPointError, match=f"the networks were put back to update {good}") as error:
            for progress in fit(bank, data, P, THREE, updates=150, batch_size=4, ema=0.9, lr=lr or 1e-3):
                kept[progress.update] = bank.copy(), progress.average.copy()
                average = progress.average
        assert one_sentence(error) and same(bank, kept[good][0]) and at_rest(bank)
        assert not good or same(average, kept[good][1])


def test_dropout_follows_the_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    banks = [ImageBank(net, 3) for net in (DROPPING, DROPPING, NETS["unet"])]
    for bank, noise in zip(banks, (1, 2, 3), strict=True):
        torch.rand(noise)  # wherever that generator stands
        left = torch.get_rng_state()
        run(bank, updates=5)
        assert torch.equal(torch.get_rng_state(), left)
    torch.set_rng_state(before)
    assert torch.equal(banks[0].params, banks[1].params)
    assert not torch.allclose(banks[0].params, banks[2].params), "values are dropped"


def test_a_network_learns_from_digits():
    """Both objectives, from a data set that adds its own noise."""
    digits = load("digits").draws(centred=True)
    for native, process in (("eps", P), ("velocity", OTFlow())):
        net = Ronneberger(8, 2, 1, channels_last=True)
        bank = ImageBank(net, 1, native=native)
        losses = [float(p.loss) for p in fit(bank, digits, process, Partition.points(1), updates=150, batch_size=16)]
        # at t = 1 nearly all is noise: eps can be read off, and the velocity is eps - x_0
        assert losses[-1] < 0.6 * losses[0] and losses[-1] < 0.5


# Refusals ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_one_sentence(monkeypatch):
    bank = ImageBank(NORMED, 3)
    for kw, culprit in (
        ({"optimiser": "soap"}, 'SOAP works on the matrices .*: train image networks with optimiser="adam"'),
        ({"objective": FlowMatching()}, r"make it with ImageBank\(..., native='velocity'\)"),
        ({"partition": Partition([0, 1])}, "holds 3 networks but .* has 1 blocks"),
        ({"data": DATA.flatten(1)}, "takes images of shape"),
        ({"data": DATA.expand(-1, 3, -1, -1)}, "takes images of shape"),
    ):
        with pytest.raises(ValueError, match=culprit) as error:
            run(bank, **kw)
        assert one_sentence(error)
    monkeypatch.setattr(memory, "available", lambda device: 20000)
    with pytest.raises(MemoryError, match="training 3 networks at batch 4 needs about .* GiB but cpu has") as error:
        run(bank)
    assert one_sentence(error) and same(bank, ImageBank(NORMED, 3)) and at_rest(bank)


def test_the_prediction_of_memory_covers_a_chunk_and_grows_with_everything(monkeypatch):
    asked = []
    monkeypatch.setattr("psmlib.training.steps.check_memory", lambda needed, device, what: asked.append(needed))

    def needed(size=3, net=NORMED, **kw):
        bank = ImageBank(net, size)
        run(bank, Partition.equal(size), **{"updates": 1, **kw})
        return asked[-1]

    base = needed()
    for kw in ({"size": 6}, {"batch_size": 8}, {"workers": 2}, {"ema": 0.9}, {"net": Ronneberger(4, 2, 1, dtype=F64)}):
        assert needed(**kw) > base, kw
    for data in (DATA, load("digits").draws()):
        bank = ImageBank(Ronneberger(4, 2, 1), 1)
        step = ImageSteps(bank, data, Recipe(P, Partition([0, 1]), updates=2, batch_size=32))
        moments, grad = Adam(bank.params), torch.empty_like(bank.params)
        with HeldBytes(bank.params, bank.buffers, grad, *moments.state.values()) as held:
            step.run(slice(0, 1), moments, grad, None, 0, 2)
        assert 0.2 * step.planned(1) < held.peak < step.planned(1)


# Stops ------------------------------------------------------------------------------------------------------


def snap(stops, folder=None, net=NORMED, **kw) -> snapshots.Snapshots:
    settings = {"batch_size": 4, "ema": 0.9, **kw}
    return snapshots.train(ImageBank(net, 3), DATA, P, THREE, stops=stops, folder=folder, **settings)


def test_snapshots_of_image_banks_are_kept_read_and_gone_on_from(tmp_path):
    kept, again = snap([50, 100], tmp_path), snap([50, 100], tmp_path)
    short = ImageBank(NORMED, 3)
    average = run(short, updates=50, ema=0.9).average
    assert same(kept.banks[50], average) and not torch.equal(kept.banks[50].params, kept.banks[100].params)
    for n in (50, 100):
        assert same(kept.banks[n], again.banks[n]) and kept.losses[n] == again.losses[n]
    (tmp_path / "100.safetensors").unlink()
    assert same(snap([50, 100], tmp_path).banks[100], kept.banks[100])


@pytest.mark.parametrize(
    "change", [{"batch_size": 5}, {"lr": 1e-2}, {"net": NETS["ronneberger"]}, {"ema": None}], ids=str
)
def test_snapshots_of_a_run_with_other_settings_are_refused(tmp_path, change):
    snap([50], tmp_path)
    with pytest.raises(ValueError, match="50.safetensors was made with .* but this run has") as error:
        snap([50], tmp_path, **change)
    assert one_sentence(error)
    with pytest.raises(ValueError, match=r"positive multiples of 50 updates, all but the last, got \[\]"):
        snap([], tmp_path)


def test_a_batch_is_noised_images():
    """x_t, times and targets of a block, from rows of the data."""
    bank = ImageBank(NETS["unet"], 3)
    recipe = Recipe(P, THREE, updates=5, batch_size=100)
    x, t, eps, weight = noised(bank, DATA, recipe, 1, 5, torch.Generator().manual_seed(0))
    assert weight is None
    x0 = (x - P.sigma(t)[:, None, None, None] * eps) / P.alpha(t)[:, None, None, None]
    row = torch.cdist(x0.flatten(1), DATA.flatten(1)).argmin(1)
    assert torch.allclose(x0, DATA[row], atol=1e-12) and len(row.unique()) == len(DATA)
    assert float(t.min()) > 0.1 and float(t.max()) <= 0.4
