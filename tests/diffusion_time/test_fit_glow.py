"""Training a Glow: a law with a known entropy, the same run twice, a run that diverges, and refusals."""

import math

import pytest
import torch

from psmlib.diffusion_time.auxiliary import gaussian
from psmlib.diffusion_time.fit_glow import fit_glow
from psmlib.diffusion_time.noised_data import diffused_batches, diffused_data
from psmlib.machine.streams import stream
from psmlib.process import VP

F64 = torch.float64
SMALL = {"levels": 1, "steps": 1, "hidden": 4, "batch_size": 16}


def test_a_glow_learns_the_law_of_diffused_images():
    # a constant image under noise: N(alpha c, sigma^2 I), whose entropy is known
    process, T, data = VP(), 0.3, torch.full((1, 1, 4, 4), 0.7, dtype=F64)
    draw = diffused_batches(data, process, T)
    run = list(fit_glow(draw, process, T, updates=150, levels=1, steps=2, hidden=8, lr=3e-3, dtype=F64))
    assert [p.update for p in run] == [50, 100, 150] and all(p.updates == 150 for p in run)
    assert run[0].auxiliary is run[-1].auxiliary and run[-1].seconds > run[0].seconds > 0
    nu, x = run[-1].auxiliary, diffused_data(data, process, T, stream(7), draws=5000)
    cross, entropy = -nu.log_prob(x), 8 * math.log(2 * math.pi * math.e * float(process.sigma(T)) ** 2)
    assert entropy - 4 * float(cross.std()) / 70 < float(cross.mean()) < entropy + 0.15
    assert float(gaussian(process, T, (1, 4, 4)).log_prob(x).mean()) < -entropy - 0.5
    assert nu.parameters == nu.law.parameter_count


def test_a_glow_trained_twice_is_the_same_and_leaves_the_global_generator_alone():
    data = torch.randn(64, 1, 4, 4, generator=stream(0), dtype=F64)
    state = torch.get_rng_state()
    with torch.no_grad():  # a reader may have turned gradients off
        a, b, c = (list(fit_glow(data, VP(), 0.3, updates=3, seed=s, **SMALL))[-1].auxiliary for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    x = data[:5]
    assert torch.equal(a.log_prob(x), b.log_prob(x)) and not torch.equal(a.log_prob(x), c.log_prob(x))


def test_adams_first_step_is_the_learning_rate():
    runs = [fit_glow(torch.randn(64, 1, 4, 4, generator=stream(0)), VP(), 0.3, updates=1, lr=lr, schedule="constant",
                     dtype=F64, **SMALL) for lr in (1e-3, 4e-3)]  # fmt: skip
    a, b = (torch.cat([p.detach().flatten() for p in next(run).auxiliary.law.parameters()]) for run in runs)
    assert float((a - b).abs().max()) == pytest.approx(3e-3, rel=1e-3)


def test_batches_hang_on_the_seed():
    seen = []

    def draw(n, generator):
        seen.append(torch.randn(n, 1, 4, 4, generator=generator))
        return seen[-1]

    for seed in (0, 1):
        next(fit_glow(draw, VP(), 0.3, updates=1, seed=seed, **SMALL))
    # the first batch is drawn twice, once for the actnorms, and before it a few points that tell the data from others
    assert len(seen) == 6 and len({float(x[0, 0, 0, 0]) for x in seen}) == 3


def test_a_glow_goes_on_where_it_was_left(tmp_path):
    data = torch.randn(64, 1, 4, 4, generator=stream(0))
    given = dict(updates=110, **SMALL)
    file = dict(path=tmp_path / "glow.safetensors", save_every=50, resume=True)
    whole = list(fit_glow(data, VP(), 0.3, **given))
    next(fit_glow(data, VP(), 0.3, **given, **file))
    again = list(fit_glow(data, VP(), 0.3, **given, **file))
    assert [p.update for p in again] == [100, 110] and again[-1].loss == whole[-1].loss
    for a, b in zip(whole[-1].auxiliary.law.parameters(), again[-1].auxiliary.law.parameters(), strict=True):
        assert torch.equal(a, b)
    (finished,) = fit_glow(data, VP(), 0.3, **given, **file)
    assert finished.update == 110 and torch.equal(finished.auxiliary.log_prob(data), again[-1].auxiliary.log_prob(data))
    with pytest.raises(ValueError, match="was made with T = 0.3 but this run has 0.2"):
        next(fit_glow(data, VP(), 0.2, **given, **file))


def test_a_glow_that_diverges_is_put_back():
    calls = []

    def draw(n, generator):
        calls.append(n)
        x = torch.randn(n, 1, 4, 4, generator=generator)
        return x if len(calls) < 70 else x * math.inf

    run = fit_glow(draw, VP(), 0.3, updates=100, **SMALL)
    nu = next(run).auxiliary
    x = torch.zeros(1, 1, 4, 4)
    before = nu.log_prob(x)
    with pytest.raises(FloatingPointError, match="between updates 50 and 100: .* put back to update 50"):
        next(run)
    assert torch.equal(nu.log_prob(x), before)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"updates": 0}, "updates must be a positive whole number, got 0"),
        ({"updates": 1, "batch_size": 1.5}, "batch_size must be a positive whole number, got 1.5"),
        ({"updates": 1, "lr": -1.0}, "lr must be positive, got -1.0"),
        ({"updates": 1, "schedule": "linear"}, "unknown schedule 'linear': use one of constant, one_cycle"),
        ({"updates": 1, "levels": 3}, "use levels=2 or fewer"),
    ],
)
def test_settings_of_a_glow_that_will_not_do_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        next(fit_glow(torch.zeros(9, 1, 4, 4), VP(), 0.3, **settings))


@pytest.mark.parametrize("T", [0.0, -0.1, 1.1, math.nan])
def test_times_outside_the_process_are_refused(T):
    with pytest.raises(ValueError, match=r"T must lie in \(0, 1\], where VP.* runs, got"):
        next(fit_glow(torch.zeros(9, 1, 4, 4), VP(), T, updates=1))
