"""The exact law at its limits: far out, at time zero, and where flow matching ends."""

import math

import pytest
import torch

from psmlib.data.toys import HG, TY, Mixture
from psmlib.process import EDM, PREDICTIONS, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
PSM = VP(0.0, 10.0)
PROCESSES = [PSM, VP(0.1, 20.0), SubVP(0.1, 20.0), VE(0.01, 5.0), RVE(0.001, 5.0, 0.05), OTFlow(), EDM(3.0)]
SLANTED = Mixture(
    gaussians=[(3, [0.5, -0.3], [[0.2, 0.05], [0.05, 0.1]])],
    boxes=[(5, [-0.6, 0.4], [0.5, 0.2], 30.0), (2, [0.9, 0.8], [0.1, 0.6], -15.0)],
    name="slanted",
)
BOX = Mixture(boxes=[(1, [0.3, -0.2], [0.05, 0.4], 0.0)])
each = pytest.mark.parametrize("p", PROCESSES, ids=lambda p: type(p).__name__)


def points(n=40, scale=1.0, seed=0, dim=2):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("toy", [HG(), TY(), BOX], ids=["HG", "TY", "box"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@each
def test_far_out_is_finite_and_points_back(toy, dtype, p):
    angle = torch.arange(8, dtype=F64) * math.pi / 4 + 0.1
    out = torch.stack([angle.cos(), angle.sin()], 1)
    law, t = toy.diffused(p), 0.05 * p.T
    for distance in (50.0, 1e3):
        x = ((3 + distance * float(p.sigma(t))) * out).to(dtype)
        score, jac = law.jacobian(x, t)
        mean, cov = law.posterior(x, t)
        for y in (law.log_prob(x, t), score, jac, mean, cov, law.eps(x, t), law.velocity(x, t)):
            assert y.dtype == dtype and y.isfinite().all()
        assert ((score * out.to(dtype)).sum(1) < 0).all()
        # what pulls back is the distance to the posterior mean
        want = ((float(p.alpha(t)) * law.denoised(x.double(), t) - x) / float(p.sigma(t)) ** 2).to(dtype)
        rtol = 1e-9 if dtype == F64 else 1e-6
        close(score, want, rtol=0, atol=rtol * float(want.abs().max()))
        assert toy is not BOX or (mean.abs() <= torch.tensor([0.35, 0.6]) + 1e-6).all()  # no mass elsewhere


@each
def test_at_time_zero_the_limit_is_returned(p):
    law = SLANTED.diffused(p)
    x = SLANTED.sample(200, torch.Generator().manual_seed(4))
    x = torch.cat([x, 3 * points(100, seed=5)])
    close(law.log_prob(x, 0.0), SLANTED.log_prob(x), rtol=1e-7, atol=1e-7)
    close(law.denoised(x, 0.0), x, rtol=0, atol=1e-8)
    assert (law.eps(x, 0.0) == 0).all()
    # only the Gaussian has a slope; inside the boxes it is diluted
    normal = torch.distributions.MultivariateNormal(SLANTED.gauss_mean[0], SLANTED.gauss_cov[0])
    share = (SLANTED.gauss_weight[0].log() + normal.log_prob(x) - SLANTED.log_prob(x)).exp()
    score = -share[:, None] * torch.linalg.solve(SLANTED.gauss_cov[0], (x - SLANTED.gauss_mean[0]).T).T
    close(law.score(x, 0.0), score, rtol=1e-7, atol=1e-7)
    velocity = p.drift(0.0) * x - 0.5 * p.diffusion2(0.0) * score
    close(law.velocity(x, 0.0), velocity, rtol=1e-7, atol=1e-7)
    for kind in PREDICTIONS:
        assert all(y.isfinite().all() for y in law.jacobian(x, 0.0, kind))
    assert law.divergence(x, 0.0).isfinite().all()


@pytest.mark.parametrize("toy", [HG(), TY()], ids=["HG", "TY"])
def test_at_time_zero_far_components_do_no_harm(toy):
    law, x = toy.diffused(PSM), 3 * points(400)
    for y in (*law.jacobian(x, 0.0), *law.jacobian(x, 0.0, "velocity"), *law.posterior(x, 0.0)):
        assert y.isfinite().all()
    close(law.log_prob(x, 0.0), toy.log_prob(x), rtol=1e-6, atol=1e-6)


@each
def test_continuous_at_time_zero(p):
    law, x = SLANTED.diffused(p), torch.tensor([[0.5, -0.2], [0.3, -0.4]], dtype=F64)  # away from the boxes' edges
    t = float(p.time_of_sigma(1e-8))
    close(law.log_prob(x, t), law.log_prob(x, 0.0), rtol=0, atol=1e-7)
    close(law.score(x, t), law.score(x, 0.0), rtol=1e-6, atol=1e-6)
    close(law.divergence(x, t), law.divergence(x, 0.0), rtol=1e-6, atol=1e-6)


def test_flow_matching_at_the_end():
    p, x = OTFlow(), points(20)
    law = SLANTED.diffused(p)
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64))
    close(law.log_prob(x, 1.0), normal.log_prob(x).sum(1))
    v, jac = law.jacobian(x, 1.0, "velocity")
    close(v, x - SLANTED.mean)
    close(jac, torch.eye(2, dtype=F64).expand(20, 2, 2))  # d v / d x = I - alpha cov -> I
    mean, cov = law.posterior(x, 1.0)
    close(mean, SLANTED.mean.expand(20, 2))
    close(cov, SLANTED.cov.expand(20, 2, 2))  # noise tells nothing
    close(law.score(x, 1.0), -x)
    close(law.divergence(x, 1.0), torch.full((20,), -2.0, dtype=F64))


def test_flow_matching_is_continuous_up_to_the_end():
    p, x = OTFlow(), points(20)
    law = SLANTED.diffused(p)
    end = law.jacobian(x, 1.0, "velocity")
    for gap in (1e-4, 1.01e-6, 0.99e-6, 1e-9, 1e-12):
        for got, want in zip(law.jacobian(x, 1 - gap, "velocity"), end, strict=True):
            close(got, want, rtol=0, atol=20 * gap + 1e-9)
    # the two ways to the velocity meet where one takes over from the other
    two = [law.jacobian(x, 1 - gap, "velocity") for gap in (1.0001e-6, 0.9999e-6)]
    for a, b in zip(*two, strict=True):
        close(a, b, rtol=0, atol=2e-9)
