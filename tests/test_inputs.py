"""Inputs that a reader may well give: answered rightly, or refused in one sentence that names the argument."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.data.images import Images, quantise
from psmlib.data.toys import HG, Mixture
from psmlib.likelihood import log_likelihood
from psmlib.nets.mlp import Plain
from psmlib.partition import TPSM_B, Partition, cut
from psmlib.process import EDM, RVE, VE, VP, OTFlow, Shortened, SubVP
from psmlib.sampling import last, ode, sde
from psmlib.training import fit, snapshots
from psmlib.training.times import LogUniform

F32 = np.float32
ORIGIN = torch.tensor([[0, 0]])
SMALL = Plain(hidden=(8,))


# --- whole numbers where points are meant ---


def test_whole_numbers_are_points():
    exact, vp = HG().diffused(VP()), VP()
    assert float(HG().log_prob(ORIGIN)) == pytest.approx(float(HG().log_prob(ORIGIN.double())), abs=1e-6)
    assert float(HG().log_prob(ORIGIN)) == pytest.approx(-0.123, abs=1e-3)
    points, x = torch.tensor([[1, 0], [0, 2]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    noise = torch.ones(2, 2)
    nats = lambda points: log_likelihood(exact, vp, points, t0=0.1, steps=5).log_prob  # noqa: E731
    for found, wanted in (
        (exact.log_prob(points, 0.3), exact.log_prob(x, 0.3)),
        (exact.score(points, 0.3), exact.score(x, 0.3)),
        (exact.velocity(points, 0.3), exact.velocity(x, 0.3)),
        (exact.divergence(points, 0.3), exact.divergence(x, 0.3)),
        (vp.perturb(points, 0.3, noise), vp.perturb(x, 0.3, noise)),
        (vp.prior_log_prob(points), vp.prior_log_prob(x)),
        (vp.convert(points, 0.3, noise, "eps", "denoised"), vp.convert(x, 0.3, noise, "eps", "denoised")),
        (nats(points), nats(x)),
        (last(ode(exact, vp, points, [1.0, 0.5])).x, last(ode(exact, vp, x, [1.0, 0.5])).x),
        (
            last(sde(exact, vp, points, [1.0, 0.5], generator=torch.Generator().manual_seed(0))).x,
            last(sde(exact, vp, x, [1.0, 0.5], generator=torch.Generator().manual_seed(0))).x,
        ),
    ):  # fmt: skip
        assert found.is_floating_point() and torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("x", [torch.zeros(2), torch.zeros(2, 3), torch.zeros(1, 2, 2), [[0.0, 0.0]], np.zeros((1, 2))])
def test_what_is_no_table_of_points_is_refused(x):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\) for HG|points must be a tensor of real numbers"):
        HG().log_prob(x)


# --- times that single precision has rounded ---


@pytest.mark.parametrize("edge", [0.02, 0.1, 0.3, 1.0])
def test_an_edge_in_single_precision_is_the_edge(edge):
    k = TPSM_B.edges.index(edge) - 1
    for t in (torch.tensor(edge), F32(edge), float(F32(edge)), edge, torch.tensor([edge])):
        assert int(TPSM_B.block_of(t)) == k
        assert len(cut(TPSM_B, float(t))) == k + 1
    assert int(TPSM_B.block_of(edge * (1 + 1e-5))) == k + 1 if edge < 1 else True


def test_ends_in_single_precision_are_the_ends():
    short = Shortened(VP(), float(F32(0.3)))
    Partition([0, 0.1, 0.3]).check_covers(short)
    Partition([0, 0.1, float(F32(0.3))]).check_covers(Shortened(VP(), 0.3))
    x = torch.zeros(1, 2)
    end = log_likelihood(HG().diffused(VP()), Shortened(VP(), 0.3), x, t0=F32(0.1), t1=F32(0.3), steps=3).t1
    assert end == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"t1 must lie in \[0, 1\], got 1.1"):
        log_likelihood(HG().diffused(VP()), VP(), x, t0=0.1, t1=1.1)


# --- numbers of NumPy and tensors where Python's are meant ---


def test_numpy_numbers_make_the_same_run():
    def run(integer, real):
        bank = Bank(SMALL, integer(2), seed=integer(3))
        process = VP(real(0.25), real(10.0))
        how = dict(updates=integer(50), batch_size=integer(8), lr=real(0.5**9), seed=integer(1), ema=real(0.5))
        *_, progress = fit(bank, HG(), process, Partition([0, 0.1, 1]), **how)
        return progress.average.params, repr(process), bank.seed

    plain = run(int, float)
    for integer, real in ((np.int64, np.float64), (np.int32, np.float32), (torch.tensor, torch.tensor)):
        params, process, seed = run(integer, real)
        assert torch.equal(params, plain[0]) and process == plain[1] and type(seed) is int
    assert repr(VP(0, 10)) == repr(VP(0.0, 10.0)) == "VP(beta_min=0.0, beta_max=10.0)"


def test_numpy_numbers_are_kept_in_files(tmp_path):
    bank = Bank(SMALL, 2, seed=np.int64(3))
    for _ in fit(bank, HG(), VP(), Partition([0, 0.1, 1]), updates=50, batch_size=np.int64(8), path=tmp_path / "a.st"):
        pass
    bank.save(tmp_path / "b.st", updates=50)
    assert Bank.load(tmp_path / "b.st")[0].seed == 3


# --- values out of range ---


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EDM(math.nan), "EDM needs a finite sigma_max, got nan"),
        (lambda: EDM(-1.0), "EDM needs a positive sigma_max, got -1.0"),
        (lambda: VP(0.1, math.inf), "VP needs a finite beta_max, got inf"),
        (lambda: RVE(eps=-1.0), "RVE needs a positive eps, got -1.0"),
        (lambda: VE(1.0, 0.5), "VE needs 0 < sigma_min < sigma_max"),
        (lambda: VP().time_of_sigma(1.0), r"sigma must lie in \[0, 1\), the noise levels that are reached, got 1"),
        (lambda: SubVP().time_of_sigma(1.5), r"sigma must lie in \[0, 1\), .* got 1.5"),
        (lambda: VE().time_of_sigma(-0.1), r"sigma must lie in \[0, inf\), .* got -0.1"),
        (lambda: RVE().time_of_sigma(50.0), r"sigma must lie in \[0, 50\), .* got 50"),
        (lambda: OTFlow().time_of_sigma(torch.tensor([0.5, 2.0])), r"sigma must lie in \[0, 1\), .* got 2"),
        (lambda: Partition([0, math.nan, 1]), "Partition edges must be finite"),
        (lambda: Partition.equal(2.5), "k, the number of blocks, must be a positive whole number, got 2.5"),
        (lambda: Partition.points(0), "n, the number of points, must be a positive whole number, got 0"),
        (lambda: Bank(SMALL, 0), "size must be a positive whole number, got 0"),
        (lambda: LogUniform(0.5, 0.0), "t_min must be positive, where log-uniform times start, got 0.0"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("times", [range(999, -1, -1), [1.0, math.nan], [1.0, -0.1], [0.5, 1.0], [1.0]])
def test_times_of_samplers_lie_within_the_process(times):
    exact, x = HG().diffused(VP()), torch.zeros(1, 2)
    for sampler in (ode, sde):
        with pytest.raises(ValueError, match=r"times must (lie in \[0, 1\], got|descend from noise to data)"):
            last(sampler(exact, VP(), x, times))


def test_a_run_is_refused_before_it_begins():
    bank = Bank(SMALL, 1)
    before = bank.params.clone()
    for wrong, said in (
        (dict(save_every=0), "save_every must be a positive whole number, got 0"),
        (dict(updates=0), "updates must be a positive whole number, got 0"),
        (dict(batch_size=2.5), "batch_size must be a positive whole number, got 2.5"),
        (dict(lr=math.nan), "lr must be positive, got nan"),
        (dict(lr=math.inf), "lr must be positive, got inf"),
        (dict(ema=1.0), r"ema must lie in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=said):
            next(fit(bank, HG(), VP(), Partition([0, 1]), **dict(updates=100, batch_size=8) | wrong))
        assert torch.equal(bank.params, before)


# --- numbers that are not finite ---


@pytest.mark.parametrize("method", ["rk4", "adaptive"])
def test_a_point_that_is_not_finite_is_named(method):
    x = torch.zeros(50, 2)
    x[17, 1] = math.nan
    exact = HG().diffused(VP())
    with pytest.raises(ValueError, match=r"point 17 of 50 is not finite \(nan\): drop it, or look at what made it"):
        log_likelihood(exact, VP(), x, t0=1e-3, method=method)
    with pytest.raises(ValueError, match="point 17 of 50 is not finite"):
        last(ode(exact, VP(), x, [1.0, 0.5], method=method))


def test_a_field_that_is_not_finite_is_named_at_once():
    class Broken(type(HG().diffused(VP()))):
        calls = 0

        def velocity(self, x, t):
            type(self).calls += 1
            found = super().velocity(x, t)
            found[3] = math.nan
            return found

    with pytest.raises(FloatingPointError, match="the field is not finite at point 3 of 9, at t = 1: drop the point"):
        last(ode(Broken(HG(), VP()), VP(), torch.zeros(9, 2), [1.0, 0.5], method="adaptive"))
    assert Broken.calls < 20


def test_levels_are_made_of_numbers():
    with pytest.raises(ValueError, match="1 of 2 values are NaN, which have no level"):
        quantise(torch.tensor([math.nan, 0.5]), 256)
    for levels in (1000, 257, 1, 0, -3):
        with pytest.raises(ValueError, match=f"of 2 to 256 levels, got levels={levels}"):
            quantise(torch.tensor([0.5]), levels)
    assert quantise(torch.tensor([0.5, -math.inf, math.inf]), 256).tolist() == [128, 0, 255]


# --- consistency ---


def images(**changes):
    arrays = {split: np.zeros((9, 1, 4, 4), np.uint8) for split in ("train", "validation", "test")}
    return Images("x", arrays | {k: v for k, v in changes.items() if k != "levels"}, levels=changes.get("levels", 17))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(test=np.full((9, 1, 4, 4), 200, np.uint8)), "test images of x have the level 200, but only 0..16"),
        (dict(test_labels=np.zeros(5, int)), "x has 5 test labels for 9 images: give one each"),
        (dict(levels=1000), "x cannot have 1000 grey levels"),
        (dict(levels=17.5), "x cannot have 17.5 grey levels"),
    ],
)
def test_images_agree_with_their_levels_and_labels(changes, said):
    with pytest.raises(ValueError, match=said):
        images(**changes)
    assert images(levels=np.int64(17)).levels == 17


# --- a run knows its data ---


def test_a_resumed_run_knows_its_data(tmp_path):
    how = dict(stops=[50], batch_size=8, seed=0)
    a, b = (torch.randn(100, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    run = lambda data, folder: snapshots.train(Bank(SMALL, 1), data, VP(), Partition([0, 1]), folder=folder, **how)  # noqa: E731
    run(a, tmp_path / "a")
    run(a.clone(), tmp_path / "a")
    with pytest.raises(ValueError, match="was made with data = .* in another folder"):
        run(b, tmp_path / "a")
    one, other = (Mixture(gaussians=[(1.0, (0.0, 0.0), v)], name="toy") for v in (1.0, 2.0))
    run(one, tmp_path / "b")
    with pytest.raises(ValueError, match="was made with data = 'toy"):
        run(other, tmp_path / "b")


# --- Ctrl-C ---


def test_ctrl_c_ends_training_at_once():
    script = """
        import signal, torch
        from psmlib.bank.mlp_bank import Bank
        from psmlib.data.toys import HG
        from psmlib.nets.mlp import Plain
        from psmlib.partition import Partition
        from psmlib.process import VP
        from psmlib.training import fit
        from psmlib.training.mlp_steps import MLPSteps
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        torch.set_num_threads(1)
        whole = MLPSteps.run
        MLPSteps.run = lambda *arguments: (print("chunk", flush=True), whole(*arguments))[1]
        next(fit(Bank(Plain(), 200), HG(), VP(), Partition.equal(200), updates=10**6, batch_size=512, workers=2))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ)
    assert process.stdout.readline() == "chunk\n"
    process.send_signal(2)
    rest = process.communicate(timeout=300)[0]
    # of 200 chunks, the two that are running are waited for, and a few that began before the signal came
    assert rest.count("chunk") < 20 and process.returncode != 0
