"""Blocks of time: which block owns a time, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psmlib.partition import SA, TPSM_A, TPSM_B, Partition, cut
from psmlib.process import EDM, VP

F64 = torch.float64


def naive_block(edges, t):
    """Block k owns (edge_k, edge_{k+1}]; block 0 owns 0 too."""
    if t == 0:
        return 0
    return next(k for k in range(len(edges) - 1) if edges[k] < t <= edges[k + 1])


ascending = st.lists(st.floats(1e-6, 50), min_size=1, max_size=30, unique=True).map(lambda e: [0.0, *sorted(e)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(edges=ascending, shares=st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_block_of_is_the_naive_search(edges, shares):
    p = Partition(edges)
    times = [min(s * edges[-1], edges[-1]) for s in shares] + edges  # the edges themselves, always
    got = p.block_of(torch.tensor(times, dtype=F64))
    assert got.dtype == torch.int64
    assert got.tolist() == [naive_block(edges, t) for t in times]
    assert [int(p.block_of(t)) for t in times] == got.tolist()


def test_edges_belong_to_the_left_block():
    p = Partition([0, 0.1, 0.3, 1])
    assert p.block_of(torch.tensor([0.0, 1e-300, 0.1, 0.3, 1.0], dtype=F64)).tolist() == [0, 0, 0, 1, 2]
    after = math.nextafter(0.1, 1)
    assert int(p.block_of(after)) == 1 and int(p.block_of(math.nextafter(0.1, 0))) == 0


def test_shapes_of_times():
    p = TPSM_A
    assert p.block_of(0.5).shape == () and p.block_of(torch.tensor(0.05)).shape == ()
    assert p.block_of(torch.full((3, 2), 0.5)).tolist() == [[1, 1]] * 3
    assert p.block_of(torch.tensor([])).shape == (0,)
    assert p.block_of(torch.tensor([0.5], dtype=torch.float32)).tolist() == [1]


@pytest.mark.parametrize("bad", [-1e-12, 1 + 1e-9, math.nan, math.inf, -math.inf])
def test_times_outside_are_refused(bad):
    with pytest.raises(ValueError, match="lies outside \\[0, 1\\]") as caught:
        Partition([0, 0.5, 1]).block_of(torch.tensor([0.2, bad, 0.9], dtype=F64))
    assert f"{bad:g}" in str(caught.value) and "\n" not in str(caught.value)


def test_equal_blocks():
    p = Partition.equal(200)
    assert len(p) == 200 and p.T == 1 and not p.discrete
    t = (torch.arange(200, dtype=F64) + 0.5) / 200
    assert p.block_of(t).tolist() == list(range(200))
    assert Partition.equal(4, T=80.0).edges == (0, 20, 40, 60, 80)
    assert p.bounds(0) == (0, 0.005) and p.bounds(199) == (0.995, 1)


def test_points():
    p = Partition.points(1000)
    assert p.discrete and len(p) == len(p.times) == 1000
    assert p.times[-1] == 1 and p.times[0] == 0.001
    # a time point answers for the interval that ends there
    assert p.block_of(torch.tensor(p.times, dtype=F64)).tolist() == list(range(1000))
    assert int(p.block_of(0.0)) == 0 and int(p.block_of(0.0011)) == 1
    own = Partition.points([0.2, 0.9, 1.0])
    assert own.times == (0.2, 0.9, 1.0) and own.edges[0] == 0


def test_the_papers_blocks():
    assert (len(SA), len(TPSM_A), len(TPSM_B)) == (1, 2, 4)
    assert TPSM_A.edges == (0, 0.1, 1) and TPSM_B.edges == (0, 0.02, 0.1, 0.3, 1)


def test_equality_and_hash():
    assert Partition([0, 0.5, 1]) == Partition.equal(2) and hash(Partition([0, 0.5, 1])) == hash(Partition.equal(2))
    assert Partition.equal(2) != Partition.points(2) and Partition.equal(2) != Partition.equal(3)
    assert Partition.equal(2) != (0, 0.5, 1)
    assert len({SA, Partition([0, 1]), Partition.points(1)}) == 2


def test_repr_names_the_edges():
    assert repr(TPSM_A) == "Partition(2 blocks: 0, 0.1, 1)"
    assert repr(Partition.points(3)) == "Partition(3 points: 0, 0.333333, 0.666667, 1)"
    assert repr(Partition.equal(200)) == "Partition(200 blocks: 0 .. 1)"


def test_check_covers():
    TPSM_B.check_covers(VP())
    Partition.equal(7, T=80.0).check_covers(EDM(80.0))
    Partition.equal(3, T=0.1).check_covers(EDM(0.1))  # 0.1 * 3 / 3 is not 0.1 in floating point
    for p, process in [(SA, EDM(80.0)), (Partition([0, 0.99]), VP()), (Partition([0, 1.01]), VP())]:
        with pytest.raises(ValueError, match="runs to T = .*: give edges from 0 to ") as caught:
            p.check_covers(process)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Partition([0]), "at least two edges"),
        (lambda: Partition([]), "at least two edges"),
        (lambda: Partition([0.1, 1]), "start at 0, got 0.1"),
        (lambda: Partition([0, 0.5, 0.5, 1]), "0.5 follows 0.5"),
        (lambda: Partition([0, 0.5, 0.2]), "0.2 follows 0.5"),
        (lambda: Partition([0, math.nan, 1]), "must be finite"),
        (lambda: Partition([math.nan, 1]), "must be finite"),
        (lambda: Partition.equal(0), "number of blocks, must be a positive whole number, got 0"),
        (lambda: Partition.points(0), "number of points, must be a positive whole number, got 0"),
        (lambda: Partition.points([0.5, 0.4]), "0.4 follows 0.5"),
    ],
)
def test_bad_edges_are_named_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8, unique=True), st.data())
def test_cut_keeps_the_first_blocks(times, data):
    partition = Partition([0, *sorted(times)], discrete=data.draw(st.booleans()))
    k = data.draw(st.integers(1, len(partition)))
    short = cut(partition, partition.edges[k])
    assert short.edges == partition.edges[: k + 1] and short.discrete == partition.discrete
    assert cut(partition, partition.T) == partition


def test_edges_closer_than_the_tolerance_are_still_told_apart():
    close = Partition([0, 999.9999999999999, 1000.0])
    assert cut(close, 1000.0) == close and len(cut(close, 999.9999999999999)) == 1


@pytest.mark.parametrize(
    "T, words",
    [(0.2, "at 0.1 or 0.3$"), (0.01, "at 0.02$"), (0.99, "at 0.3 or 1$"), (0.0, "outside"), (1.2, "cut within it$")],
)
def test_cuts_between_edges_are_refused(T, words):
    with pytest.raises(ValueError, match=words):
        cut(Partition([0, 0.02, 0.1, 0.3, 1]), T)


def test_edges_are_met_up_to_rounding():
    assert len(cut(Partition.equal(10), 0.1 + 0.2)) == 3  # 0.30000000000000004
