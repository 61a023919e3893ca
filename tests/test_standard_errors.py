"""Means, tables, ratios and rank correlations: their standard errors against repeated draws and by hand."""

import numpy as np
import pytest
import torch

from psmlib.standard_errors import (
    Estimate,
    average,
    controlled,
    difference,
    estimate,
    holm,
    mean,
    mean_curve,
    mean_line,
    proportion,
    rank_correlation,
    rms,
    rms_average,
    rms_difference,
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


def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say():
    g = torch.Generator().manual_seed(0)
    for m, n in ((3, 200), (5, 20)):
        hits, plain = [], []
        for _ in range(1500):
            table = torch.randn(m, 1, generator=g) + torch.randn(1, n, generator=g) + torch.randn(m, n, generator=g)
            found = average(table.double())
            low, high = found.interval()
            hits.append(low <= 0 <= high)
            plain.append(abs(found.value) <= 2 * found.stderr)
        assert 0.92 <= np.mean(hits) <= 0.97
    assert np.mean(plain) < np.mean(hits) - 0.01, "two standard errors hold it too seldom"


def test_degrees_of_freedom():
    assert mean([1.0, 2.0, 4.0]).df == 2 and estimate(2.0).df == np.inf
    points = average(torch.randn(1, 30, generator=torch.Generator().manual_seed(0)))
    assert (points.df, points.n, points.seeds) == (pytest.approx(29), 30, 1)
    # Welch's test of scipy has the same degrees of freedom and p-value
    from scipy import stats

    a, b = [1.0, 2.0, 4.0, 3.5], [2.0, 9.0, 5.0]
    welch = stats.ttest_ind(a, b, equal_var=False)
    apart = mean(a).minus(mean(b))
    assert apart.df == pytest.approx(welch.df) and apart.p_value() == pytest.approx(welch.pvalue)
    assert apart.interval() == pytest.approx(tuple(welch.confidence_interval()))


def test_an_estimate_without_an_error_decides_nothing_and_an_exact_one_everything():
    one = mean([3.0])
    assert one.p_value() == 1.0 and one.interval() == (-np.inf, np.inf)
    assert one.minus(2.0).stderr is None and one.within(5).p_value() == 1.0
    assert estimate(0.5).interval() == (0.5, 0.5) and (estimate(0.5).p_value(), estimate(0.0).p_value()) == (0.0, 1.0)
    assert mean([2.0] * 5).p_value() == 0.0625 and mean([0.0] * 5).p_value() == 1.0
    both = Estimate(3.0, 0.3, 4, n=50, seeds=5).minus((1.0, 0.4))
    assert both == (2.0, pytest.approx(0.5)) and (both.n, both.seeds) == (50, 5)
    import pickle

    again = pickle.loads(pickle.dumps(both))
    assert again == both and (again.df, again.seeds) == (both.df, 5)


def test_holm_is_bonferroni_step_by_step():
    assert holm([]) == [] and holm([0.05]) == [True] and holm([0.051]) == [False]
    assert holm([0.04, 0.001, 0.02]) == [True, True, True] and holm([0.04, 0.001, 0.03]) == [False, True, False]


def test_a_control_variate_takes_its_noise_away():
    def run(seed, slope):
        g = torch.Generator().manual_seed(seed)
        c = torch.randn(80, generator=g, dtype=torch.float64) + 3.0
        table = 1.0 + slope * (c - 3.0) + 0.1 * torch.randn(2, 80, generator=g, dtype=torch.float64)
        return controlled(table, c, 3.0), average(table)

    for slope in (1.0, 0.0, -2.0):
        found = [run(seed, slope) for seed in range(300)]
        values = np.array([controlled.value for controlled, _ in found])
        assert values.mean() == pytest.approx(1.0, abs=0.003)
        # seeds and points share the noise here, which is counted twice: at most a factor sqrt 2
        assert 0.9 < np.mean([c.stderr for c, _ in found]) / values.std() < 1.6
        if slope:
            assert np.mean([plain.stderr for _, plain in found]) > 5 * np.mean([c.stderr for c, _ in found])
    with pytest.raises(ValueError, match=r"needs shapes \(seeds, n\) and \(n,\), .* got \(2, 5\) and \(4,\)"):
        controlled(torch.zeros(2, 5), torch.zeros(4), 0.0)


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


def test_a_line_holds_where_the_means_and_their_errors():
    curves = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = mean_line([1, 2, 3], curves)
    torch.testing.assert_close(line, torch.stack([torch.tensor([1.0, 2.0, 3.0]).double(), *mean_curve(curves)]))
    assert mean_line([1, 2, 3], curves[:1])[2].isnan().all()


def test_roots_of_tables_of_squares_vary_as_claimed():
    def table(seed):
        g = torch.Generator().manual_seed(seed)
        shared = torch.randn(1, 60, generator=g, dtype=torch.float64)
        a, b = (shared + 0.3 * torch.randn(6, 60, generator=g, dtype=torch.float64) for _ in range(2))
        return a.square(), (0.5 * b).square()

    many = [table(seed) for seed in range(300)]
    for f, true in ((lambda a, b: rms_average(a), 1.09**0.5), (rms_difference, 0.5 * 1.09**0.5)):
        found = np.array([f(a, b) for a, b in many])
        assert found[:, 0].mean() == pytest.approx(true, rel=0.02)
        # what rows and columns make together is counted twice: the error is too large rather than too small
        assert 0.9 < found[:, 1].mean() / found[:, 0].std() < 1.3
