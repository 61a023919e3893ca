"""Timestep clustering: choice of the method, Table 4, gradients and difficulty."""

import math

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.clustering import rules, split
from psmlib.clustering.rules import METHODS, best_segments, timestep_gradients
from psmlib.data.toys import HG, Mixture
from psmlib.exact.expectations import component_average
from psmlib.exact.finite_set import DiffusedData
from psmlib.exact.irreducible_loss import irreducible_loss
from psmlib.kernels.bank_mlp import bank_mlp_ref
from psmlib.machine.streams import stream
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import SA, Partition
from psmlib.process import EDM, VE, VP, OTFlow

F64 = torch.float64
USUAL = VP(0.1, 20.0)
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VE(0.01, 5.0), EDM(3.0), OTFlow()]
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


# dispatch


def test_the_papers_table():
    assert split("timestep") == (0.334, 0.667)  # printed .330 and .670
    assert split("snr", process=USUAL) == (0.348, 0.709)  # as printed


def test_every_method_gives_the_inner_borders_of_a_partition():
    toy = HG().centred()
    data = toy.sample(20, torch.Generator().manual_seed(0))
    arguments = {
        "optimal_denoiser": dict(score=DiffusedData(data, PSM), data=data, samples=500, eta=0.1),
        "timestep": dict(times=50),
        "snr": dict(process=PSM, times=50),
        "gradient": dict(bank=Bank(Plain(hidden=(8,)), 1), data=toy, process=PSM, times=20, batch=32),
        "difficulty": dict(toy=toy, process=PSM, times=12),
    }
    assert set(arguments) == set(METHODS)
    for method, given in arguments.items():
        for intervals in (2, 3, 5) if method != "optimal_denoiser" else (2, 3):
            borders = split(method, intervals=intervals, **given)
            assert len(Partition([0, *borders, 1])) == intervals
            assert all(isinstance(border, float) for border in borders)
    assert split(**arguments["optimal_denoiser"]) == METHODS["optimal_denoiser"](**arguments["optimal_denoiser"])


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        (
            "kmeans",
            {},
            "unknown method 'kmeans' of clustering: use one of optimal_denoiser, timestep, snr, gradient, dif",
        ),
        (
            "snr",
            dict(process=PSM, threshold=0.9),
            "snr clustering takes no threshold=: it takes process, intervals, times",
        ),
        ("snr", {}, "snr clustering needs process=: it takes process, intervals"),
        (
            "optimal_denoiser",
            dict(data=torch.ones(2, 2)),
            "optimal_denoiser clustering needs score=: it takes score, d",
        ),
        ("gradient", dict(data=HG(), process=PSM), "gradient clustering needs bank=: it takes bank, data, process"),
        ("difficulty", dict(toy=HG(), process=PSM, intervals=0), "one block or more, got intervals=0"),
        ("timestep", dict(times=2), "2 times cannot be cut into 3 segments"),
        ("gradient", dict(bank=Bank(Plain(), 2), data=HG(), process=PSM), "the bank holds 2: train one block"),
    ],
)
def test_bad_input(method, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        split(method, **arguments)
    assert "\n" not in str(caught.value)


# segments in time and in log SNR


def test_one_interval_has_no_inner_border():
    assert split("timestep", intervals=1) == split("snr", process=PSM, intervals=1) == ()
    assert split("difficulty", toy=HG(), process=PSM, intervals=1, times=8) == ()


@each
def test_ends_other_than_one(p):
    assert split("timestep", T=p.T) == pytest.approx([0.334 * p.T, 0.667 * p.T], rel=1e-12)
    borders = split("snr", process=p, times=300)
    t = p.T * torch.arange(1, 301, dtype=F64) / 300
    value = p.log_snr(t).clamp_min(float(p.log_snr(t[-2])))  # the last may be infinite
    cuts = best_segments((value[:, None] - value).abs(), 3)
    assert borders == pytest.approx([float(t[i]) for i in cuts], rel=1e-12)


def test_where_log_snr_is_even_in_time_both_rules_agree():
    # VE with a large ratio: log SNR falls by a straight line, but for its start
    p = VE(1e-3, 1e3)
    assert split("snr", process=p, times=999) == pytest.approx(split("timestep", times=999), abs=0.02)


def test_sizes_can_be_set():
    assert split("timestep", intervals=2, times=100, smallest=50, largest=50) == (0.51,)
    t1, t2 = (round(100 * t) for t in split("snr", process=USUAL, times=100, smallest=33, largest=34))
    assert sorted((t1 - 1, t2 - t1, 101 - t2)) == [33, 33, 34]


# gradients


def one(hidden=(7, 5), native="eps", arch=Plain, **more):
    return Bank(arch(hidden=hidden), 1, native=native, dtype=F64, seed=3, **more)


@pytest.mark.parametrize("native", ["eps", "velocity"])
@pytest.mark.parametrize("arch", [Plain, Conditioned])
@pytest.mark.parametrize("p", [PSM, EDM(3.0)], ids=["VP", "EDM"])
def test_gradients_are_those_of_the_loss_at_one_time(native, arch, p):
    bank, toy, batch = one(native=native, arch=arch), HG().centred(), 64
    times = torch.tensor([0.05, 0.4, 1.0], dtype=F64) * p.T
    found = timestep_gradients(bank, toy, p, times, batch=batch, seed=5)
    assert found.shape == (3, bank.arch.parameters) and found.dtype == F64
    for k, t in enumerate(times):
        generator = stream(5, k)
        x0 = toy.sample(batch, generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=F64)
        x = p.perturb(x0, t, eps)
        target = eps if native == "eps" else p.alpha_rate(t) * x0 + p.sigma_rate(t) * eps
        params = bank.params.clone().requires_grad_()
        told = bank_mlp_ref(params, bank.arch.widths, bank.arch.features(x, t, p)[None])[0]
        skip = bank.arch.skip(t, p, native)
        loss = (told + (0 if skip is None else skip * x) - target).square().mean()
        (want,) = torch.autograd.grad(loss, params)
        torch.testing.assert_close(found[k], want[0], rtol=1e-9, atol=1e-12)


def test_gradients_from_a_tensor_of_points():
    data = HG().sample(30, torch.Generator().manual_seed(0))
    args = one(), data, PSM, torch.tensor([0.2, 1.0], dtype=F64)
    found = timestep_gradients(*args, batch=50_000, seed=1)
    again = timestep_gradients(*args, batch=50_000, seed=2)
    assert float((found - again).norm() / found.norm()) < 0.1  # the same but for the draws
    assert torch.equal(found, timestep_gradients(*args, batch=50_000, seed=1))


def test_segments_of_engineered_gradients(monkeypatch):
    """Three directions in turn, of any length: the borders are where the direction changes."""
    angle = torch.cat([torch.full((n,), a) for n, a in ((11, 0.0), (8, 1.0), (11, 2.5))])
    length = 0.1 + torch.rand(30, generator=torch.Generator().manual_seed(0))
    g = length[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    seen = {}

    def gradients(bank, data, process, times, **settings):
        seen.update(settings, times=times)
        return g

    monkeypatch.setattr(rules, "timestep_gradients", gradients)
    borders = split("gradient", bank=None, data=None, process=EDM(3.0), times=30, batch=5, seed=7)
    assert borders == pytest.approx([1.2, 2.0])  # the 12th and the 20th of .1, .2, .. 3
    assert seen["times"].tolist() == pytest.approx([0.1 * (i + 1) for i in range(30)]) and seen["seed"] == 7
    g[3] = 0  # a gradient that vanishes has no direction, and does no harm
    assert split("gradient", bank=None, data=None, process=EDM(3.0), times=30) == pytest.approx([1.2, 2.0])


def test_the_gradient_path_from_end_to_end():
    bank, toy = one(), HG().centred()
    borders = split("gradient", bank=bank, data=toy, process=PSM, times=24, batch=128, seed=2, intervals=4)
    t = torch.arange(1, 25, dtype=F64) / 24
    g = timestep_gradients(bank, toy, PSM, t, batch=128, seed=2)
    cosine = torch.nn.functional.cosine_similarity(g[:, None], g, dim=2)
    assert borders == pytest.approx([float(t[i]) for i in best_segments(1 - cosine, 4)])


# difficulty


@each
@pytest.mark.parametrize("intervals", [2, 3, 5])
def test_a_gaussians_information_is_shared_out_equally(p, intervals):
    # by I-MMSE half the loss of both axes, integrated over log SNR, is log(1 + s^2 SNR) at one end less the other
    s, t_min = 0.7, 1e-2
    borders = split(
        "difficulty", toy=Mixture(gaussians=[(1, [0.2, 0.0], s**2)]), process=p, intervals=intervals, t_min=t_min
    )
    ends = [t_min, *borders, p.T]
    information = [math.log1p(s**2 * math.exp(float(p.log_snr(t)))) for t in ends]
    shares = [(a - b) / (information[0] - information[-1]) for a, b in zip(information, information[1:], strict=False)]
    assert max(abs(intervals * share - 1) for share in shares) < 0.03


@each
def test_a_toys_difficulty_by_other_quadrature(p):
    toy, t_min = HG().centred(), 1e-3 * p.T
    borders = split("difficulty", toy=toy, process=p, t_min=t_min)
    end = p.T if float(p.alpha(p.T)) > 0 else p.T * (1 - 1e-6)
    shares = []
    for a, b in zip([t_min, *borders], [*borders, end], strict=True):
        # Simpson's rule in log t, of other points than those that found the borders
        t = torch.logspace(math.log10(a), math.log10(b), 21, dtype=F64)
        u = t.log().requires_grad_()
        (slope,) = torch.autograd.grad(p.log_snr(u.exp()).sum(), u)
        step = math.log(b / a) / 20
        loss = torch.tensor([irreducible_loss(toy, p, float(s), m=7, repeats=2)[0] for s in t], dtype=F64)
        weight = torch.tensor([1.0, *9 * [4.0, 2.0], 4.0, 1.0], dtype=F64) * step / 3
        shares.append(float((weight * loss * -slope).sum()))
    assert max(3 * share / sum(shares) for share in shares) < 1.03
    assert min(3 * share / sum(shares) for share in shares) > 0.97


def test_difficulty_is_information():
    """The same borders from entropies alone: I(x_0; x_t) = h(x_t) - log(2 pi e sigma^2) in the plane."""
    toy = HG().centred()
    law = toy.diffused(PSM)

    def information(t):
        entropy = -component_average(toy, lambda x: law.log_prob(x, t), process=PSM, t=t)[0]
        return entropy - math.log(2 * math.pi * math.e) - 2 * float(PSM.sigma(t).log())

    values = [information(t) for t in (0.01, *split("difficulty", toy=toy, process=PSM, t_min=0.01), 1.0)]
    shares = [3 * (a - b) / (values[0] - values[-1]) for a, b in zip(values, values[1:], strict=False)]
    assert max(abs(share - 1) for share in shares) < 0.03


def test_the_borders_feed_a_bank():
    partition = Partition([0, *split("snr", process=PSM, times=90), 1])
    score = Bank(Plain(hidden=(4,)), len(partition)).score(partition, PSM)
    assert score.eps(torch.zeros(2, 2), torch.tensor([0.1, 0.9])).shape == (2, 2)
    assert Partition([0, *split("snr", process=PSM, intervals=1), 1]) == SA
