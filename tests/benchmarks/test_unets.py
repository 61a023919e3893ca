"""The contestants train the same networks, and the fastest is the one that was measured to be."""

import time
from itertools import pairwise

import pytest
import torch

from psmlib.bank.image_bank import ImageBank
from psmlib.benchmarks import unets
from psmlib.benchmarks.timing import Times
from psmlib.benchmarks.unet_contestants import (
    LR,
    MODES,
    PROCESS,
    TASKS,
    Graphs,
    OneByOne,
    SharedGraph,
    Stretch,
    Vmap,
)
from psmlib.benchmarks.unets import BASELINE, Settings
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition

F64 = torch.float64
NETS = {
    "unet": UNet(4, (1, 2), 1, blocks=1, heads=1, head_dim=2, groups=2, dtype=F64),
    # a bias before a batch norm has no gradient but rounding, which Adam makes steps of
    "ronneberger": Ronneberger(2, 2, 1, bias=False, dtype=F64, channels_last=True),
}
TINY = Settings(networks=2, batches=(3, 3), updates=2, rounds=2)
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def given(net, size=3) -> tuple:
    g = torch.Generator().manual_seed(0)
    x, target = (torch.randn(size, 4, 1, 4, 4, generator=g, dtype=F64) for _ in range(2))
    return ImageBank(net, size), x, target, torch.rand(size, 4, generator=g, dtype=F64)


@each_net
def test_all_take_the_same_steps(net):
    start = given(net)
    loop, others, desk = OneByOne(*start), [Vmap(*start), Graphs(*start, 2)], SharedGraph(*start)
    for side in (loop, *others):
        for mode in MODES[:2]:
            side.turn(mode, 1)
            params, _, grad = side.result()
            assert torch.equal(params, start[0].params), "parameters move in whole steps only"
            assert bool(grad.any()) == (mode != "forward")
    for other in others:
        torch.testing.assert_close(other.result()[2], loop.result()[2], rtol=1e-8, atol=1e-11)
    for side in (loop, *others, desk):
        side.turn("whole step", 3), side.turn("whole step", 2)
    assert float((loop.bank.params - start[0].params).abs().max()) > 4 * LR
    for other in (*others, desk):
        params, buffers, _ = other.result()
        torch.testing.assert_close(params, loop.bank.params, rtol=1e-8, atol=1e-9)
        if other is not desk:  # which took no part in the turns before
            torch.testing.assert_close(buffers, loop.bank.buffers, rtol=1e-9, atol=1e-11)


def test_what_lies_between_two_updates_is_no_work_space():
    start = given(NETS["ronneberger"])
    for side in (OneByOne(*start), Vmap(*start), Graphs(*start, 2)):
        side.turn("whole step", 1)
        before = [tensor.data_ptr() for tensor in side.state]
        alone, _ = unets.held_by(side, "cpu")
        assert [tensor.data_ptr() for tensor in side.state] == before
        assert alone > 0
    wide, loop = (unets.held_by(kind(*start), "cpu")[0] for kind in (Vmap, OneByOne))
    assert 2 * loop < wide < 6 * loop, "three networks at once hold about three times as much"


def test_cases_are_of_both_sizes_and_networks():
    for settings in (Settings(), Settings(paper=True, device="meta")):
        found = list(unets.cases(settings))
        assert [shape for _, _, shape in found] == [(32, 1, 8, 8)] * 2 + [(8, 3, 32, 32)] * 2
        assert [type(net) for _, net, _ in found] == [UNet, Ronneberger] * 2
        for name, net, _ in found:
            assert f"{net.parameter_count:,} parameters" in name and net.parameter_count > 50_000
    assert [net.parameter_count for _, net, _ in found[2:]] == [35_711_107, 31_043_651], "as the papers have them"


def test_rows_without_a_cuda_device():
    net = Ronneberger(2, 2, 1)
    measured = list(unets.measure("a case", net, (3, 1, 4, 4), TINY))
    speeds = [row for row in measured if row.measure.startswith("updates a second")]
    assert [row.method for row in speeds] == [BASELINE, "vmap", "graphs"] * 3 + ["desk"]
    for row in speeds:
        if row.method in ("graphs", "desk"):
            assert row.values == (None,) * 3 and row.note == "not measured: cpu is no CUDA device"
        else:
            assert row.runs == 2 and all(a <= b for a, b in pairwise(row.values)) and row.values[0] > 0
    held = {row.method: row.values[1] for row in measured if row.measure == "work space of an update"}
    assert set(held) == {BASELINE, "vmap"} and held["vmap"] > held[BASELINE]
    winner = next(row for row in measured if row.measure.startswith("lead of the fastest"))
    steps = {row.method: row.values[1] for row in speeds if "whole step" in row.measure and row.values[1]}
    assert winner.method == max(steps, key=steps.get) and winner.values[1] > 0


def test_the_fastest_is_measured():
    taken = {name: Times(0.0, (s, 2 * s)) for name, s in ((BASELINE, 6.0), ("vmap", 4.0), ("graphs", 2.0))}
    row = unets.fastest("a case", taken)
    assert (row.method, row.values[1], row.ratios[1]) == ("graphs", 2.0, 3.0)
    assert row.note == "2.00 times as fast as vmap, 3.00 times as fast as one by one"
    taken[BASELINE] = Times(0.0, (1.0, 2.0))
    assert unets.fastest("a case", taken).method == BASELINE
    taken[BASELINE] = Times(0.0, (3.0, 6.0))
    assert unets.fastest("a case", taken).note == "1.50 times as fast as one by one"


def test_a_turn_takes_the_time_of_its_updates(monkeypatch):
    class Slow:
        def turn(self, mode, updates):
            time.sleep(0.002 * updates)

    taken = unets.turns({"a": Slow()}, "forward", TINY)
    assert len(taken["a"].seconds) == 2 and min(taken["a"].seconds) >= 0.004


def test_wrong_gradients_end_the_run_after_all_rows(monkeypatch):
    net = Ronneberger(2, 2, 1)
    names = [row.measure for row in unets.measure("a case", net, (3, 1, 4, 4), TINY)]
    monkeypatch.setattr(Vmap, "result", lambda self: [rows.flip(0) for rows in self.layers])
    seen, message = [], "gradients of vmap and of the loop differ .* look for the fault in Vmap"
    with pytest.raises(RuntimeError, match=message) as error:
        for row in unets.measure("a case", net, (3, 1, 4, 4), TINY):
            seen.append(row.measure)
    assert seen == names and "\n" not in str(error.value)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("points", [False, True])
def test_a_task_runs_on_the_networks_that_its_stretch_visits(task, points):
    stretch, x = Stretch(2), torch.zeros(2, 1, 4, 4, dtype=F64)
    blocks = stretch.visited(Partition.points(1000) if points else Partition.equal(10))
    assert len(blocks) == (4 if points else 3), "those inside, and one on either side"
    net = NETS["ronneberger" if points else "unet"]
    found = stretch.call(task, ImageBank(net, len(blocks)).score(blocks, PROCESS), x, points=points)()
    if task == "Likelihood Estimation":
        steps = 8 if points else 2 * 4
        assert found.log_prob.shape == (2,) and found.nfe == steps
    else:
        assert found.x.shape == x.shape and found.x.isfinite().all()
    with pytest.raises(ValueError, match="task"):
        stretch.call("Training", None, x)
