"""Mixtures of Gaussians: closed forms, and refusals of what is none."""

import math

import pytest
import torch

from psmlib.diffusion_time.dirichlet_mixture import GaussianMixture, fit
from psmlib.machine.streams import stream

F64 = torch.float64


def covariances(k=3, d=4):
    a = torch.randn(k, d, d, generator=stream(0), dtype=F64)
    return a @ a.mT + 0.1 * torch.eye(d, dtype=F64)


def test_one_component_is_a_normal_law_and_two_average():
    mean, cov = torch.randn(2, 4, generator=stream(1), dtype=F64), covariances(2)
    x = torch.randn(50, 4, generator=stream(2), dtype=F64)
    each = [torch.distributions.MultivariateNormal(m, c).log_prob(x) for m, c in zip(mean, cov, strict=True)]
    one = GaussianMixture(torch.ones(1), mean[:1], cov[:1])
    torch.testing.assert_close(one.log_prob(x), each[0], rtol=0, atol=1e-10)
    both = GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), mean, cov)
    wanted = (0.3 * each[0].exp() + 0.7 * each[1].exp()).log()
    torch.testing.assert_close(both.log_prob(x), wanted, rtol=0, atol=1e-10)


def test_the_forms_of_covariance_agree_where_they_mean_the_same():
    w, mean, var = torch.tensor([0.5, 0.5]), torch.randn(2, 3, generator=stream(3)), torch.tensor([0.5, 2.0])
    full = GaussianMixture(w, mean, var[:, None, None] * torch.eye(3))
    diag = GaussianMixture(w, mean, var[:, None].expand(2, 3), "diag")
    spherical = GaussianMixture(w, mean, var, "spherical")
    x = torch.randn(9, 3, generator=stream(4), dtype=F64)
    for other in (diag, spherical):
        torch.testing.assert_close(other.log_prob(x), full.log_prob(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(other.sample(9, stream(5)), full.sample(9, stream(5)), rtol=0, atol=1e-12)
    assert (full.parameters, diag.parameters, spherical.parameters) == (1 + 6 + 12, 1 + 6 + 6, 1 + 6 + 2)


def test_samples_have_the_covariance_of_their_component():
    cov = covariances(2)
    m = GaussianMixture(torch.tensor([0.0, 1.0]), torch.zeros(2, 4), cov)
    assert m.active == 1
    x = m.sample(50000, stream(6))
    torch.testing.assert_close(torch.cov(x.T), cov[1], rtol=0.05, atol=0.05)


def test_a_component_without_weight_says_nothing():
    m = GaussianMixture(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [9.0]]), torch.ones(2), "spherical")
    assert float(m.log_prob(torch.tensor([[9.0]]))) == pytest.approx(-0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    "parts, covariance, words",
    [
        ((torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2)), "tied", "unknown covariance 'tied': use one of full"),
        ((torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2)), "full", r"covariances of shape \(1, 2, 2\), got"),
        ((torch.ones(2), torch.zeros(1, 2), torch.ones(1, 2)), "diag", r"have weights of shape \(1,\)"),
        ((torch.ones(1), torch.zeros(1, 2), -torch.eye(2)[None]), "full", "positive covariances"),
        ((torch.ones(1), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])), "diag", "positive covariances"),
        ((-torch.ones(1), torch.zeros(1, 2), torch.ones(1)), "spherical", "weights of 0 or more"),
    ],
)
def test_what_is_no_mixture_is_refused(parts, covariance, words):
    with pytest.raises(ValueError, match=words):
        GaussianMixture(*parts, covariance)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"components": 0}, "components must be a positive whole number, got 0"),
        ({"components": 11}, "11 components need as many points, and at least 2, got 10: draw more"),
        ({"covariance": "tied"}, "unknown covariance 'tied'"),
        ({"concentration": 0.0}, "concentration must be positive, got 0.0"),
        ({"iterations": True}, "iterations must be a positive whole number, got True"),
    ],
)
def test_settings_that_will_not_do_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        fit(torch.zeros(10, 2), **settings)
    with pytest.raises(ValueError, match="must be finite numbers"):
        fit(torch.full((10, 2), torch.nan), components=1)


def test_a_fit_that_was_cut_short_says_so(recwarn):
    x = torch.randn(500, 2, generator=stream(7))
    assert fit(x, components=5, iterations=2)[1]["converged"] is False
    assert not len(recwarn)
