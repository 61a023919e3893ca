"""Costs: what memory counts, how turns are paired, intervals of ratios, and the two kinds of update."""

import itertools
import math

import pytest
import torch
from scipy import stats

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import timing
from psmlib.benchmarks.cnf import CNF, differentiable
from psmlib.benchmarks.costs import (
    LEVEL,
    Cost,
    Ratio,
    above,
    below,
    compare,
    denoising_update,
    flow_update,
    largest,
    measure,
    peak_bytes,
    ratio,
)
from psmlib.benchmarks.timing import Times
from psmlib.machine import deadline
from psmlib.machine.streams import stream
from psmlib.nets import unet
from psmlib.nets.mlp import Plain
from psmlib.process import VP

PSM = VP(0.0, 10.0)
SMALL = Plain(hidden=(20, 20))


def cost(*seconds, peak=0):
    return Cost(Times(0.0, seconds), peak)


@pytest.fixture
def clock(monkeypatch):
    """A clock that each call moves on by what it says it takes."""
    now = [0.0]
    monkeypatch.setattr(timing, "clock_of", lambda device: lambda: now[0])

    def taking(*seconds):
        left = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def call():
            now[0] += next(left)

        return call

    return taking


# memory


def test_turns_that_are_kept_are_not_taken_again(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "turns.json"
    contestants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    monkeypatch.setenv(deadline.VARIABLE, "0")
    with pytest.raises(deadline.Unfinished, match="0 of 3"):
        compare(contestants, repeats=3, path=path)
    assert not calls
    monkeypatch.delenv(deadline.VARIABLE)
    found = compare(contestants, repeats=2, path=path)
    assert len(calls) == 4 + 2 * 3, "two calls each for their memory, a warm-up and two turns each"
    more = compare(contestants, repeats=3, path=path)
    assert more["a"].times.seconds[:2] == found["a"].times.seconds and len(more["b"].times.seconds) == 3
    assert len(compare(contestants, repeats=2, path=path)["a"].times.seconds) == 2 and len(calls) == 14
    with pytest.raises(ValueError, match=r"turns.json cannot be read \(it is of other contestants\): delete it"):
        compare({"a": contestants["a"]}, repeats=3, path=path)
    path.write_text("{")
    with pytest.raises(ValueError, match="turns.json cannot be read"):
        compare(contestants, repeats=3, path=path)


def test_the_peak_is_what_is_held_at_once_and_not_what_is_made_in_all():
    def one_after_another():
        for _ in range(5):
            torch.zeros(100)

    assert peak_bytes(one_after_another) == 400
    assert peak_bytes(lambda: [torch.zeros(100) for _ in range(5)]) == 2000


def test_what_was_there_before_counts_nothing_wherever_it_is_kept():
    kept = {"deep": [torch.zeros(1000)]}
    net = torch.nn.Linear(300, 2)
    assert peak_bytes(lambda: kept["deep"][0][10:20].add_(1)) == 0
    assert peak_bytes(lambda: net.weight.detach().mT) == 0
    assert peak_bytes(lambda: kept["deep"][0].clone()) == 4000


def test_what_a_backward_pass_keeps_is_counted():
    x = torch.ones(1000, requires_grad=True)

    # exp keeps its result for the way back; nine of them are nine results, and a gradient
    def chain():
        y = x
        for _ in range(9):
            y = y.exp().clamp(max=2)
        return torch.autograd.grad(y.sum(), x)

    held = peak_bytes(chain)
    assert held >= 9 * 4000
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp()) <= 8000


def test_what_a_first_call_leaves_for_later_ones_is_held_before():
    kept = []
    assert peak_bytes(lambda: kept or kept.append(torch.zeros(1000))) == 0
    assert peak_bytes(lambda: kept.append(torch.zeros(1000))) == 4000


def test_objects_that_lie_about_their_class_are_left_alone():
    class Liar:
        @property
        def __class__(self):
            raise AssertionError("asked for its class")

    liars = [[Liar()] for _ in range(3)]
    assert peak_bytes(lambda: torch.zeros(10)) == 40 and len(liars) == 3


# turns and ratios


def test_contestants_take_turns_and_the_warm_up_is_apart(clock):
    a, b = clock(8, 8, 9, 1, 2, 3), clock(8, 8, 9, 2, 4, 6)  # the first two calls of each are for the memory
    found = compare({"a": a, "b": b}, repeats=3)
    assert found["a"].times == Times(9.0, (1.0, 2.0, 3.0)) and found["b"].seconds[1] == 4.0
    exact = ratio(found["b"], found["a"])
    assert (exact.value, exact.low, exact.high) == (2.0, 2.0, 2.0)


def test_no_contestant_always_follows_the_same_other():
    order = []
    names = "abcd"
    compare({name: lambda name=name: order.append(name) for name in names}, repeats=20)
    rounds = ["".join(order[i : i + 4]) for i in range(8 + 4, len(order), 4)]  # memory and warm-up come first
    assert len(rounds) == 20 and all(sorted(each) == list(names) for each in rounds)
    joined = "".join(rounds)
    assert {joined[i - 1] for i in range(1, len(joined)) if joined[i] == "a"} >= set("bcd")


def test_memory_is_taken_from_the_shorter_call(clock):
    long, short = clock(5, 1), []
    found = compare({"a": long}, repeats=2, small={"a": lambda: short.append(torch.zeros(10))})
    assert found["a"].peak_bytes == 40 and len(short) == 2 and found["a"].times == Times(5.0, (1.0, 1.0))


def test_pairing_removes_what_hits_both():
    busy = [1.0, 1.0, 50.0, 3.0, 1.0, 20.0, 1.0]
    one, other = cost(*busy), cost(*(1.1 * b for b in busy))
    found = ratio(other, one)
    assert found.value == pytest.approx(1.1) and found.high - found.low < 1e-12
    assert below(found, 1.05)["verdict"] == "does not hold" and below(found, 1.2)["verdict"] == "holds"
    assert above(found, 1.05)["verdict"] == "holds" and above(found, 1.2)["verdict"] == "does not hold"


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 1), (9, 2), (11, 2), (30, 10)])
def test_the_interval_is_that_of_the_sign_test(n, k):
    each = tuple(float(i + 1) for i in range(n))
    found = ratio(cost(*each), cost(*[1.0] * n))
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.level == pytest.approx(1 - 2 * stats.binom.cdf(k - 1, n, 0.5))
    if k > 1:
        assert found.level >= LEVEL > 1 - 2 * stats.binom.cdf(k, n, 0.5)


def test_the_interval_holds_the_median_as_often_as_it_says():
    draws, hits = torch.rand(2000, 9, generator=stream(1), dtype=torch.float64), 0
    ones = cost(*[1.0] * 9)
    for row in draws.tolist():
        found = ratio(cost(*row), ones)
        hits += found.low <= 0.5 <= found.high
    assert abs(hits / 2000 - found.level) < 4 * math.sqrt(found.level * (1 - found.level) / 2000)


def test_one_turn_says_nothing_of_its_error():
    found = ratio(cost(2.0), cost(1.0))
    assert (found.level, found.stderr) == (0.0, 0.0)


def test_a_standard_error_is_that_of_a_normal_with_the_same_interval():
    assert Ratio(2.0, 1.0, 3.0, 0.9545).stderr == pytest.approx(0.5, rel=1e-3)


def test_verdicts_need_the_whole_interval():
    found = [Ratio(1, low, high, LEVEL) for low, high in ((0.8, 1), (0.9, 1.1), (1.1, 1.2))]
    assert [below(ratio, 1)["verdict"] for ratio in found] == ["holds", "undecided", "does not hold"]
    assert [above(ratio, 1)["verdict"] for ratio in found] == ["undecided", "undecided", "holds"]


def test_a_claim_carries_the_distance_to_its_limit_and_the_interval():
    found = Ratio(2.0, 1.5, 4.0, LEVEL)
    assert below(found, 3.0) == dict(verdict="undecided", gain=1.0, low=-1.0, high=1.5)
    assert above(found, 3.0) == dict(verdict="undecided", gain=-1.0, low=-1.5, high=1.0)


def test_too_few_turns_decide_nothing():
    five, six = (ratio(cost(*[2.0] * n), cost(*[1.0] * n)) for n in (5, 6))
    assert above(five, 1.0) == dict(verdict="undecided", gain=1.0, low=None, high=None)
    assert above(six, 1.0) == dict(verdict="holds", gain=1.0, low=1.0, high=1.0)


def test_the_largest_ratio_is_below_a_limit_if_all_are():
    found = [Ratio(1.0, 0.9, 1.05, 0.97), Ratio(0.8, 0.7, 1.3, 0.96)]
    assert largest(found) == Ratio(1.0, 0.9, 1.3, 0.96)
    for limit in (0.85, 0.95, 1.1, 1.3):
        every = {below(ratio, limit)["verdict"] for ratio in found}
        worst = [verdict for verdict in ("does not hold", "undecided", "holds") if verdict in every][0]
        assert below(largest(found), limit)["verdict"] == worst


# updates


def test_a_denoising_update_learns_the_noise_as_well_as_it_can_be_told():
    bank = Bank(SMALL, 1, dtype=torch.float64)
    predict, params = differentiable(bank, PSM)
    x0, t = torch.randn(64, 2, generator=stream(2), dtype=torch.float64), torch.full((64,), 0.4, dtype=torch.float64)
    before, update = bank.params.clone(), denoising_update(predict, [params], PSM, x0, t, lr=0.01)
    losses = [update() for _ in range(400)]
    # normal data: E[eps | x] = sigma x, which leaves a variance of alpha^2
    assert losses[0] > 0.7 and sum(losses[-200:]) / 200 == pytest.approx(float(PSM.alpha(0.4)) ** 2, abs=0.04)
    still = Bank(SMALL, 1, dtype=torch.float64)
    predict, params = differentiable(still, PSM)
    denoising_update(predict, [params], PSM, x0, t, lr=0.0)()
    assert torch.equal(still.params, before) and not torch.equal(bank.params, before)


def test_the_noise_depends_on_the_seed_alone():
    first = []
    for seed in (0, 0, 1):
        predict, params = differentiable(Bank(SMALL, 1), PSM)
        first.append(denoising_update(predict, [params], PSM, torch.zeros(8, 2), torch.full((8,), 0.4), seed=seed)())
    assert first[0] == first[1] != first[2]


def test_only_the_network_in_question_is_changed():
    bank = Bank(SMALL, 3)
    before = bank.params.clone()
    predict, params = differentiable(bank, PSM, 1)
    denoising_update(predict, [params], PSM, torch.randn(8, 2, generator=stream(3)), torch.full((8,), 0.5))()
    assert [bool((a == b).all()) for a, b in zip(bank.params, before, strict=True)] == [True, False, True]
    assert not bank.params.requires_grad


def test_a_module_of_images_can_be_updated_too():
    net = unet.small(dim=8)
    before = [p.detach().clone() for p in net.parameters()]
    predict = lambda x, t: net(x, net.time_of(t, PSM))  # noqa: E731
    update = denoising_update(predict, list(net.parameters()), PSM, torch.zeros(3, 1, 8, 8), torch.full((3,), 0.5))
    assert update() > 0 and any(not torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_a_flow_is_called_for_every_stage_of_every_step_and_pays_in_memory():
    x0, t = torch.randn(32, 2, generator=stream(4)), torch.full((32,), 0.5)
    predict, params = differentiable(Bank(SMALL, 1), PSM)
    denoising = peak_bytes(denoising_update(predict, [params], PSM, x0, t))
    held = []
    for steps in (2, 4, 6):
        flow = CNF.of_bank(Bank(SMALL, 1, native="velocity"), steps=steps)
        held.append(peak_bytes(flow_update(flow, x0)))
        assert flow.evaluations == 2 * 4 * steps
    assert held[2] - held[1] == pytest.approx(held[1] - held[0], rel=0.02) and held[0] > 5 * denoising


def test_a_flow_learns_by_its_update():
    flow = CNF.of_bank(Bank(SMALL, 1, native="velocity"), steps=2)
    update = flow_update(flow, torch.full((16, 2), 0.5) + 0.1 * torch.randn(16, 2, generator=stream(5)), lr=0.01)
    losses = [update() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3


def test_updates_are_those_of_adam():
    x0 = torch.randn(16, 2, generator=stream(6))
    own, other = (CNF.of_bank(Bank(SMALL, 1, native="velocity"), steps=1) for _ in range(2))
    update, adam = flow_update(own, x0, lr=0.01), torch.optim.Adam(other.params, lr=0.01)
    for _ in range(4):
        update()
        other.params[0].grad = other.loss_and_gradient(x0)[1][0]
        adam.step()
    torch.testing.assert_close(own.params[0], other.params[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({}), "there is nothing to compare: give at least one call by name"),
        (lambda: measure(lambda: None, repeats=0), "repeats must be a positive whole number, got 0"),
        (lambda: ratio(cost(1.0, 2.0), cost(1.0)), "costs of 2 and 1 turns cannot be paired: measure both"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        call()
    assert message in str(caught.value)
