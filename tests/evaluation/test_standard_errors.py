"""Standard errors of figures that are not plain averages, against repeated draws."""

import numpy as np
import pytest
import torch

from psmlib.evaluation.standard_errors import rank_correlation, rms, rms_ratio, spearman


def draws(n, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return a, 0.5 * a + 0.3 * torch.randn(n, 2, generator=g, dtype=torch.float64)


def test_errors_are_those_of_repeated_draws():
    many = [draws(200, seed) for seed in range(400)]
    for f in (lambda a, b: rms(a), lambda a, b: rms_ratio(b, a)):
        found = np.array([f(a, b) for a, b in many])
        assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)


def test_values():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert rms(a)[0] == pytest.approx(2.5)
    assert rms_ratio(2 * a, a) == (pytest.approx(2.0), pytest.approx(0.0))
    assert rms(torch.zeros(3, 2)) == (0.0, 0.0) and rms_ratio(torch.zeros(2, 2), a) == (0.0, 0.0)


def test_rank_correlation():
    g = np.random.default_rng(0)
    x = g.normal(size=60)
    y = x + g.normal(size=60)
    value, error = rank_correlation(x, y)
    assert value == pytest.approx(spearman(np.exp(x), y))  # ranks alone count
    several = [spearman(*(lambda z: (z, z + g.normal(size=60)))(g.normal(size=60))) for _ in range(300)]
    assert error == pytest.approx(np.std(several), rel=0.5)
    assert rank_correlation(x, y) == (value, error)


@pytest.mark.parametrize("a, b", [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0] * 5, [1.0] * 4)])
def test_too_few_runs_are_refused(a, b):
    with pytest.raises(ValueError, match="needs four runs or more in two equal lists"):
        rank_correlation(a, b)
