"""The search for the fewest steps."""

from hypothesis import given
from hypothesis import strategies as st

from psmlib.benchmarks import steps


@given(st.integers(1, 1000))
def test_the_fewest_steps_are_found_to_one_in_fifty(enough):
    found = steps.fewest(lambda n: n >= enough)
    assert max(enough, 4) <= found <= max(enough, 4) * 1.03 + 1


@given(st.integers(4, 900), st.sets(st.integers(4, 400)))
def test_a_lucky_number_of_steps_does_not_count(enough, lucky):
    found = steps.fewest(lambda n: n >= enough or n in lucky)
    ok = lambda n: n > 1000 or n >= enough or n in lucky  # noqa: E731
    assert found is not None and ok(found) and ok(found + found // 2) and ok(2 * found)


def test_the_search_stops_at_its_limit_and_asks_nothing_twice():
    asked = []
    assert steps.fewest(lambda n: bool(asked.append(n)), limit=300) is None
    assert max(asked) == 300 and len(set(asked)) == len(asked)
