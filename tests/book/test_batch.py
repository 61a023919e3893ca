"""Batches of notebooks under a time limit."""

import pytest

from psmlib.book.notebooks import Outcome, run_within


class Clock:
    """Time that passes when a job says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def job(clock: Clock, seconds: float, ran: list[str], name: str):
    def run(tick) -> Outcome:
        ran.append(name)
        for _ in range(10):
            clock.now += seconds / 10
            tick(clock.now)
        return Outcome(seconds)

    return run


@pytest.mark.parametrize(
    "limit, ran, done, left",
    [(100, "abc", "abc", ""), (25, "abc", "ab", "c"), (9, "a", "", "abc"), (20.5, "abc", "ab", "c")],
)
def test_what_fits_is_done(limit, ran, done, left):
    clock, started = Clock(), []
    jobs = {name: job(clock, 10.0, started, name) for name in "abc"}
    found, rest = run_within(jobs, limit, clock)
    assert ("".join(started), "".join(found), "".join(rest)) == (ran, done, left)
    assert all(outcome.seconds == 10 for outcome in found.values())


def test_nothing_starts_when_the_time_is_up():
    clock, started = Clock(), []
    slow = job(clock, 10.0, started, "a")

    def late(tick) -> Outcome:
        outcome = slow(lambda s: None)  # does not look at the clock
        return outcome

    found, rest = run_within({"a": late, "b": job(clock, 1.0, started, "b")}, 5, clock)
    assert list(found) == ["a"] and rest == ["b"] and started == ["a"]


def test_other_errors_are_not_swallowed():
    def broken(tick) -> Outcome:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_within({"a": broken}, 5)
