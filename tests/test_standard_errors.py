"""Means, tables, ratios and rank correlations: their standard errors against repeated draws and by hand."""

import numpy as np
import pytest
import torch

from psmlib.standard_errors import (
    average,
    difference,
    mean,
    mean_curve,
    proportion,
    rank_correlation,
    rms,
    rms_ratio,
    spearman,
)


def draws(n, seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return a, 0.5 * a + 0.3 * torch.randn(n, 2, generator=g, dtype=torch.float64)


def test_errors_are_those_of_repeated_draws():
    many = [draws(200, seed) for seed in range(400)]
    for f in (lambda a, b: rms(a), lambda a, b: rms_ratio(b, a)):
        found = np.array([f(a, b) for a, b in many])
        assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)


def test_means_of_numbers_and_of_curves():
    curves = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, error = mean_curve(curves)
    assert value.shape == error.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            found = mean(curves[:, i, j].tolist())
            assert found == pytest.approx((float(value[i, j]), float(error[i, j])), rel=1e-14)
            assert found[1] == pytest.approx(np.std(curves[:, i, j].numpy(), ddof=1) / 5**0.5)
    assert mean_curve(curves[:1])[1] is None and mean([3])[1] is None
    assert mean(torch.tensor([1.0, 4.0], dtype=torch.float32)) == (2.5, pytest.approx(1.5))


def test_a_proportion_varies_as_claimed():
    g = torch.Generator().manual_seed(0)
    found = np.array([proportion(torch.rand(100, generator=g) < 0.3) for _ in range(2000)])
    assert found[:, 0].mean() == pytest.approx(0.3, abs=0.005)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.05)


def test_the_average_of_a_table_varies_with_its_rows_and_columns():
    def table(seed):
        g = torch.Generator().manual_seed(seed)
        rows, columns = torch.randn(8, 1, generator=g), 2 * torch.randn(1, 50, generator=g)
        return (rows + columns + 0.1 * torch.randn(8, 50, generator=g)).double()

    found = np.array([average(table(seed)) for seed in range(1000)])
    assert (found[:, 1] ** 2).mean() == pytest.approx(found[:, 0].var(), rel=0.15)
    one = table(0)[:1]
    assert average(one) == pytest.approx(mean(one[0]), rel=1e-12)  # no error of seeds from one of them
    a, b = table(1), table(2)
    assert difference(a, b) == average(a - b)
    for bad in (table(0)[0], table(0)[:, :1]):
        with pytest.raises(ValueError, match="needs a table of shape"):
            average(bad)


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
