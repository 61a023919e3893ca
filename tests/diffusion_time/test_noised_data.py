"""Where diffusion leaves the data: moments, laws that the equation must end in, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from psmlib.data.toys import HG, Mixture
from psmlib.diffusion_time.auxiliary import exact, fit_mixture
from psmlib.diffusion_time.noised_data import diffused_batches, diffused_data, ode_ends
from psmlib.likelihood import log_likelihood
from psmlib.machine.streams import stream
from psmlib.process import VP

F64 = torch.float64
PLANE = Mixture(gaussians=[(0.4, [-1.0, 0.5], 0.05), (0.6, [1.0, 0.0], [[0.3, 0.2], [0.2, 0.25]])], name="plane")


def x_T(toy=PLANE, process=None, T=0.3, n=1000, seed=0):
    return exact(toy, process or VP(), T).sample(n, stream(seed))


def test_diffused_data_have_the_moments_of_the_path_and_fresh_noise_for_each_draw():
    data, process, T = torch.tensor([[1.0, -2.0], [3.0, 0.0]], dtype=F64), VP(), 0.3
    x = diffused_data(data, process, T, stream(8), draws=20000).view(20000, 2, 2)
    alpha, sigma = float(process.alpha(T)), float(process.sigma(T))
    torch.testing.assert_close(x.mean(0), alpha * data, rtol=0, atol=5 * sigma / 141)
    torch.testing.assert_close(x.std(0), torch.full((2, 2), sigma, dtype=F64), rtol=0.02, atol=0)
    assert float(torch.corrcoef(x.flatten(1).T).fill_diagonal_(0).abs().max()) < 0.03
    one = diffused_data(data.float(), process, T, stream(8))
    assert one.dtype == torch.float32 and not torch.equal(one - alpha * data.float(), torch.zeros(2, 2))


@pytest.mark.parametrize("T", [0.1, 0.4, 1.0])
def test_the_equation_with_the_exact_score_ends_in_the_law_of_x_T(T):
    # a point of p_t0 must be fed in, so the data are diffused to t0 first
    process, t0, score = VP(), 1e-4, PLANE.diffused(VP())
    x = ode_ends(score, process, x_T(T=t0, n=4000, seed=9), T, t0=t0, steps=60, grid="warped")
    grid = torch.linspace(-6, 6, 4001, dtype=F64)
    alpha, sigma = float(process.alpha(T)), float(process.sigma(T))
    cov = alpha**2 * PLANE.cov + sigma**2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(x.mean(0), alpha * PLANE.mean, rtol=0, atol=0.07)
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.1)
    for axis in range(2):
        # the law along an axis is a mixture of normal laws
        std = (alpha**2 * PLANE.gauss_cov[:, axis, axis] + sigma**2).sqrt()
        each = torch.special.ndtr((grid[:, None] - alpha * PLANE.gauss_mean[:, axis]) / std)
        cdf = (each @ PLANE.gauss_weight).numpy()
        assert kstest(x[:, axis].numpy(), lambda y, cdf=cdf: np.interp(y, grid.numpy(), cdf)).pvalue > 1e-3


def test_sequential_equals_plain_for_the_exact_score():
    process, T, t0 = VP(), 0.3, 1e-4
    ends = ode_ends(PLANE.diffused(process), process, x_T(T=t0, n=4000, seed=1), T, t0=t0, steps=60, grid="warped")
    plain, sequential = (fit_mixture(x, process, T, components=2) for x in (x_T(n=4000, seed=2), ends))
    x = x_T(n=20000, seed=3)
    apart = plain.log_prob(x) - sequential.log_prob(x)
    assert abs(float(apart.mean())) < 0.01 and float(apart.abs().mean()) < 0.1


@pytest.mark.parametrize("method", ["rk4", "heun", "adaptive"])
def test_the_ends_are_those_of_the_likelihood(method):
    process, score, x = VP(), HG().diffused(VP()), HG().sample(20, stream(0))
    settings = dict(t0=1e-3, steps=30, method=method, grid="log_snr", rtol=1e-9, atol=1e-9)
    wanted = log_likelihood(score, process, x, t1=0.4, **settings).x_T
    torch.testing.assert_close(ode_ends(score, process, x, 0.4, **settings), wanted, rtol=0, atol=2e-6)


def test_ends_refuse_a_start_or_a_method_that_will_not_do():
    score, x = PLANE.diffused(VP()), torch.zeros(3, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"t0 must lie in \[0, 0.3\), got 0.3"):
        ode_ends(score, VP(), x, 0.3, t0=0.3)
    with pytest.raises(ValueError, match="unknown method 'rk5': use one of euler, heun, rk4, adaptive"):
        ode_ends(score, VP(), x, 0.3, t0=0.0, method="rk5")


def test_data_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="data must be of a floating-point dtype, got torch.uint8"):
        diffused_data(torch.zeros(5, 2, dtype=torch.uint8), VP(), 0.3)


@pytest.mark.parametrize("T", [0.0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize(
    "use",
    [
        lambda T: diffused_data(torch.zeros(9, 2), VP(), T),
        lambda T: ode_ends(PLANE.diffused(VP()), VP(), torch.zeros(9, 2), T, t0=0.0),
    ],
)
def test_times_outside_the_process_are_refused(use, T):
    with pytest.raises(ValueError, match=r"T must lie in \(0, 1\], where VP.* runs, got"):
        use(T)


def test_batches_draw_data_and_noise_afresh():
    data, process, T = torch.arange(10, dtype=F64)[:, None] * 100, VP(), 0.1
    draw, generator = diffused_batches(data, process, T), stream(3)
    a, b = draw(2000, generator), draw(2000, generator)
    alpha, sigma = float(process.alpha(T)), float(process.sigma(T))
    for x in (a, b):
        which = (x / (100 * alpha)).round()
        assert float(((x - 100 * alpha * which) / sigma).std()) == pytest.approx(1, abs=0.06)
        counts = torch.bincount(which.long().flatten(), minlength=10)
        assert len(counts) == 10 and float((counts - 200).abs().max()) < 80
    assert not bool((a == b).any())
