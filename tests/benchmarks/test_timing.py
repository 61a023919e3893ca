"""The arithmetic of timings: turns, quantiles, ratios, and differences that are too large."""

import pytest
import torch

from psmlib.benchmarks import timing
from psmlib.benchmarks.timing import Row, Times, agreement, interleave, number, one_thread, quantiles, rows, speed_up


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


def test_quantiles_of_known_numbers_in_any_order():
    values = [float(v) for v in range(101)]
    assert quantiles(values[::-1]) == (20.0, 50.0, 80.0)
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)


def test_contestants_take_turns_and_the_warm_up_is_told_apart(monkeypatch):
    clock, order = Clock(), []
    monkeypatch.setattr(timing, "clock_of", lambda device: clock)

    def call(name, cost):
        def turn(i):
            order.append((name, i))
            clock.spend(100 * cost if i == 0 else cost)

        return turn

    times = interleave({"a": call("a", 4.0), "b": call("b", 1.0)}, 3)
    assert order == [(name, i) for i in range(4) for name in "ab"]
    assert times == {"a": Times(400.0, (4.0, 4.0, 4.0)), "b": Times(100.0, (1.0, 1.0, 1.0))}
    assert speed_up(times["a"], times["b"]) == (4.0, 4.0, 4.0)


def test_a_ratio_is_taken_turn_by_turn():
    """A machine that grows slower and slower leaves a steady ratio alone, as the ratio of two medians would not."""
    slow = [1.0, 2.0, 8.0]
    times = {"base": Times(0.0, tuple(3 * s for s in slow)), "ours": Times(0.0, tuple(slow))}
    assert speed_up(times["base"], times["ours"]) == (3.0, 3.0, 3.0)
    base, ours = rows("case", times, "base", {"ours": "a note"}, work=6.0, measure="rate")
    assert base.ratios == (1.0, 1.0, 1.0) and base.note == ""
    assert ours.values == quantiles([6.0, 3.0, 0.75]) and ours.values[1] == 3.0
    assert (ours.ratios, ours.unit, ours.runs, ours.note) == ((3.0, 3.0, 3.0), "1/s", 3, "a note")


def test_timings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="rounds must be a positive whole number, got 0"):
        interleave({"a": lambda i: None}, 0)
    with pytest.raises(ValueError):
        speed_up(Times(0.0, (1.0,)), Times(0.0, (1.0, 2.0)))


@pytest.mark.parametrize("found", [0.2, float("nan")])
def test_a_difference_that_is_too_large_ends_the_run_after_its_row(found):
    row = Row.single("a case", "ours", "difference", "1", found)
    assert found != 0.2 or list(agreement(row, 0.3, "values", "psmlib.x")) == [row]
    checked = agreement(row, 0.1, "values", "psmlib.x")
    assert next(checked) is row
    message = f"^values differ by {found:.2g} in a case, but 0.1 is allowed: look for the fault in psmlib.x$"
    with pytest.raises(RuntimeError, match=message):
        next(checked)


def test_one_thread_within_and_as_before_after():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_numbers_as_text():
    assert [number(v) for v in (None, float("nan"), float("inf"))] == ["", "", ""]
    assert number(-0.00123456) == "-0.001235" and number(67827.3) == "67827" and number(67827.34, 6) == "67827.3"
