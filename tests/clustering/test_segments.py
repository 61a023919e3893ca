"""The optimal division of a sequence of times, compared with all possible ones."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib.clustering.rules import best_segments
from psmlib.process import VP

F64 = torch.float64


def cost_of(distance, cuts):
    """Sum of the distances to the middle element of each segment, term by term."""
    ends, total = [0, *cuts, len(distance)], 0.0
    for a, b in zip(ends, ends[1:], strict=False):
        total += sum(float(distance[a + (b - a) // 2, m]) for m in range(a, b))
    return total


def sizes_of(n, cuts):
    ends = [0, *cuts, n]
    return [b - a for a, b in zip(ends, ends[1:], strict=False)]


def every_cut(n, k, smallest, largest):
    allowed = range(max(1, smallest), largest + 1)
    return [c for c in combinations(range(1, n), k - 1) if all(s in allowed for s in sizes_of(n, c))]


def random_matrix(n, seed):
    """Not symmetric, not zero on the diagonal: nothing of a metric is used."""
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("limits", [(1, 11), (2, 5), (None, None)])
def test_no_cut_is_cheaper(k, limits):
    n = 11
    smallest, largest = (1, 11) if limits == (2, 5) and k < 3 else limits  # two segments of at most 5 are too short
    low, high = (n // (2 * k), 3 * n // (2 * k)) if smallest is None else (smallest, largest)
    for seed in range(15):
        distance = random_matrix(n, seed)
        cuts = best_segments(distance, k, smallest=smallest, largest=largest)
        costs = {c: cost_of(distance, c) for c in every_cut(n, k, low, high)}
        assert tuple(cuts) in costs
        assert cost_of(distance, cuts) == pytest.approx(min(costs.values()), rel=1e-12)
        if sorted(costs.values())[:2] == sorted(set(costs.values()))[:2]:  # the best one is alone
            assert tuple(cuts) == min(costs, key=costs.get)


def test_size_limits_bind():
    # points 0 .. 8 in two clumps of 2 and 7: the free cut is at 2, a smallest size of 4 moves it to 4
    place = torch.tensor([0.0, 0.1, 5, 5.3, 5.4, 5.5, 5.6, 5.7, 5.8], dtype=F64)
    distance = (place[:, None] - place).abs()
    assert best_segments(distance, 2, smallest=1, largest=8) == [2]
    assert best_segments(distance, 2, smallest=4, largest=8) == [4]
    assert best_segments(distance, 2, smallest=1, largest=5) == [4]
    assert best_segments(distance, 2) == [3]  # 9 // 4 = 2 and 27 // 4 = 6: two and seven are not allowed


def test_the_distance_is_read_from_the_centre():
    # seen from element 1, all is near; seen from the others, all is far: rows are centres, columns are elements
    distance = torch.full((3, 3), 10.0, dtype=F64)
    distance[1] = 0
    assert best_segments(distance, 1, smallest=1, largest=3) == []
    assert best_segments(distance, 2, smallest=1, largest=3) == [2]  # [0, 1] has centre 1, [1, 2] has centre 2
    assert best_segments(distance.T, 2, smallest=1, largest=3) == [1]  # rows of 10, 0, 10: the last two cost 0 + 10


def test_the_papers_table():
    t = torch.arange(1, 1001, dtype=F64) / 1000
    cuts = best_segments((t[:, None] - t).abs(), 3)
    assert [float(t[i]) for i in cuts] == [0.334, 0.667]  # printed .330, .670
    half = VP(0.1, 20.0).log_snr(t) / 2
    cuts = best_segments((half[:, None] - half).abs(), 3)
    assert [float(t[i]) for i in cuts] == [0.348, 0.709]  # as printed
    assert sorted(sizes_of(1000, cuts))[0] >= 166 and sorted(sizes_of(1000, cuts))[-1] <= 500


def test_the_scale_of_the_distance_makes_no_difference():
    for seed in range(5):
        distance = random_matrix(30, seed)
        for factor in (1e-9, 3.0, 1e9):
            assert best_segments(factor * distance, 3) == best_segments(distance, 3)
        assert best_segments(distance.float(), 3) == best_segments(distance.float().double(), 3)


@given(n=st.integers(1, 40), k=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_sizes_order_and_cost(n, k, seed):
    low, high = n // (2 * k), 3 * n // (2 * k)
    possible = max(1, low) * k <= n <= high * k
    distance = random_matrix(n, seed)
    if not possible:
        with pytest.raises(ValueError, match="cannot be cut"):
            best_segments(distance, k)
        return
    cuts = best_segments(distance, k)
    assert len(cuts) == k - 1 and all(a < b for a, b in zip([0, *cuts], [*cuts, n], strict=True))
    assert all(max(1, low) <= size <= high for size in sizes_of(n, cuts))
    best, g = cost_of(distance, cuts), torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = sorted((torch.randperm(n - 1, generator=g)[: k - 1] + 1).tolist()) if n > 1 else []
        if all(max(1, low) <= size <= high for size in sizes_of(n, other)):
            assert best <= cost_of(distance, other) + 1e-12


def test_one_more_segment_never_costs_more_where_sizes_are_free():
    distance = random_matrix(20, 3)
    distance = (distance + distance.T).fill_diagonal_(0)
    costs = [cost_of(distance, best_segments(distance, k, smallest=1, largest=20)) for k in (1, 2, 3, 4, 20)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0  # as many segments as times: each its own centre


@pytest.mark.parametrize(
    "distance, arguments, message",
    [
        (torch.zeros(5, 5), dict(intervals=6), "5 times cannot be cut into 6 segments of 0 to 1: change their number"),
        (torch.zeros(9, 9), dict(intervals=2, smallest=5), "9 times cannot be cut into 2 segments of 5 to 6"),
        (torch.zeros(9, 9), dict(intervals=2, largest=4), "9 times cannot be cut into 2 segments of 2 to 4"),
        (torch.zeros(9, 9), dict(intervals=0), "one segment or more, got intervals=0"),
        (torch.zeros(9, 8), dict(intervals=2), r"square matrix of finite numbers, got shape \(9, 8\)"),
        (torch.zeros(9), dict(intervals=2), r"square matrix of finite numbers, got shape \(9,\)"),
        (torch.full((4, 4), torch.nan), dict(intervals=2), "square matrix of finite numbers"),
    ],
)
def test_what_cannot_be_cut_is_refused(distance, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        best_segments(distance, **arguments)
    assert "\n" not in str(caught.value)
