"""Banks against torch.nn networks built from the same weights, differentiated automatically."""

import itertools

import pytest
import torch
from torch import Tensor

from psmlib.bank.checkpoint import save
from psmlib.bank.mlp_bank import _ROWS, Bank
from psmlib.likelihood import log_likelihood, time_grid
from psmlib.machine.streams import stream
from psmlib.nets.mlp import Conditioned, Plain
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow

F64 = torch.float64
P = VP(0.0, 10.0)
EDGES = [0, 0.1, 0.3, 1]
SMALL = Plain(hidden=(12, 7))
WAVES = Conditioned(hidden=(12, 7), octaves=3)
ARCHS = [SMALL, WAVES, Conditioned(hidden=(9,), octaves=0, use_skip=False)]


def points(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make(arch=SMALL, native="eps", discrete=False, process=P, dtype=F64):
    bank = Bank(arch, 3, native=native, seed=5, dtype=dtype)
    return bank.score(Partition(EDGES, discrete=discrete), process)


def network(bank: Bank, k: int) -> torch.nn.Sequential:
    """Network k as torch.nn layers, read off the flat vector by hand."""
    net, at = [], 0
    for a, b in itertools.pairwise(bank.arch.widths):
        linear = torch.nn.Linear(a, b, dtype=bank.params.dtype)
        linear.weight.data = bank.params[k, at : at + a * b].reshape(a, b).T.clone()
        linear.bias.data = bank.params[k, at + a * b : at + a * b + b].clone()
        at += a * b + b
        net += [linear, torch.nn.ELU()]
    assert at == bank.params.shape[1]
    return torch.nn.Sequential(*net[:-1])


def reference(score, k: int, x: Tensor, t: float, native: str) -> tuple[Tensor, Tensor]:
    """skip x + network(features), and its Jacobian row by row by automatic differentiation."""
    arch, x = score.bank.arch, x.clone().requires_grad_()
    value = network(score.bank, k)(arch.features(x, t, score.process))
    skip = arch.skip(t, score.process, native)
    if skip is not None:
        value = value + skip * x
    rows = [torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    return value.detach(), torch.stack(rows, 1)


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and ". " not in text and len(text) > 20


def test_network_k_starts_alike_whatever_the_size_of_the_bank():
    banks = {K: Bank(SMALL, K, seed=3, dtype=F64) for K in (1, 2, 5)}
    for a, b in itertools.combinations(banks.values(), 2):
        n = min(len(a), len(b))
        assert torch.equal(a.params[:n], b.params[:n])
    assert torch.equal(Bank(SMALL, 5, seed=3).params, banks[5].params.float())
    rows = torch.cat([banks[5].params, Bank(SMALL, 5, seed=4).params.double()])
    assert len(rows.unique(dim=0)) == 10, "every network and every seed starts elsewhere"


def test_starts_are_uniform_within_torchs_own_bounds():
    flat, at = Bank(Plain(), 1, dtype=F64).params[0], 0
    for a, b in itertools.pairwise(Plain().widths):
        part = flat[at : at + a * b + b] * a**0.5
        at += a * b + b
        n = len(part)
        assert float(part.abs().max()) <= 1
        assert abs(float(part.mean())) < 4.5 / (3 * n) ** 0.5
        assert abs(float(part.square().mean()) - 1 / 3) < 4.5 * (4 / 45 / n) ** 0.5


def test_streams_differ_by_seed_path_and_length():
    paths = [(s, *p) for s in range(3) for p in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (0, 1, 1)]]
    first = {torch.rand(2, generator=stream(*p), dtype=F64).numpy().tobytes() for p in paths}
    assert len(first) == len(paths)
    draws = torch.stack([torch.rand(400, generator=stream(0, k, 1, 0), dtype=F64) for k in range(30)])
    off = torch.corrcoef(draws)[~torch.eye(30, dtype=torch.bool)]
    assert float(off.abs().max()) < 5 / 400**0.5, "neighbouring streams are not related"


@pytest.mark.parametrize("native, process", [("eps", P), ("velocity", P), ("velocity", OTFlow())])
@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_values_and_derivatives_equal_those_of_torch_networks(arch, native, process):
    n = 2 * _ROWS + 3  # several pieces, the last of them short
    score, x, u = make(arch, native, process=process), points(n), points(n, 1)
    for k, t in enumerate((0.07, 0.3, 0.31)):
        value, jac = reference(score, k, x, t, native)
        found, slopes = score.predict_jacobian(x, t)
        assert torch.allclose(score.predict(x, t), value, rtol=1e-12, atol=1e-13)
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-13)
        assert torch.allclose(slopes, jac, rtol=1e-11, atol=1e-12)
        found, along = score.predict_jvp(x, t, u)
        assert torch.allclose(found, value, rtol=1e-12, atol=1e-13)
        assert torch.allclose(along, (jac @ u[..., None])[..., 0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_readings_have_the_jacobians_of_torch_networks(arch):
    score, x, t = make(arch), points(50), 0.2
    eps, jac = reference(score, 1, x, t, "eps")
    alpha, sigma, f, g2 = (float(c(t)) for c in (P.alpha, P.sigma, P.drift, P.diffusion2))
    velocity, slope = score.jacobian(x, t, "velocity")
    assert torch.allclose(velocity, f * x + g2 / (2 * sigma) * eps, rtol=1e-11, atol=1e-12)
    assert torch.allclose(slope, f * torch.eye(2, dtype=F64) + g2 / (2 * sigma) * jac, rtol=1e-11, atol=1e-11)
    trace = jac.diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(score.divergence(x, t), -trace / sigma, rtol=1e-11, atol=1e-11)
    assert torch.allclose(score.denoised(x, t), (x - sigma * eps) / alpha, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_a_time_each_goes_to_its_own_block(arch, discrete):
    score = make(arch, discrete=discrete)
    t = torch.rand(300, dtype=F64, generator=torch.Generator().manual_seed(2))
    t[:5] = torch.tensor([0.0, 0.1, 0.3, 1.0, 0.1 + 1e-12], dtype=F64)
    if not discrete:
        t[0] = 1e-9
    x, u = points(300), points(300, 1)
    block = [0 if s <= 0.1 else 1 if s <= 0.3 else 2 for s in t.tolist()]
    assert {0, 1, 2} == set(block)
    rows = [
        reference(score, k, x[i : i + 1], EDGES[k + 1] if discrete else float(t[i]), "eps") for i, k in enumerate(block)
    ]
    value, jac = (torch.cat(part) for part in zip(*rows, strict=True))
    assert torch.allclose(score.predict(x, t), value, rtol=1e-12, atol=1e-12)
    found, slopes = score.predict_jacobian(x, t)
    assert torch.allclose(found, value, rtol=1e-12, atol=1e-12)
    assert torch.allclose(slopes, jac, rtol=1e-11, atol=1e-11)
    along = score.predict_jvp(x, t, u)[1]
    assert torch.allclose(along, (jac @ u[..., None])[..., 0], rtol=1e-11, atol=1e-11)


def test_a_frozen_block_answers_for_times_beyond_it():
    score, x = make(), points(4)
    pinned = score.on_block(0.2)
    assert pinned.on_block(0.9) is pinned and pinned.block == 1
    for t in (0.05, 0.3, 0.9):
        value, jac = reference(score, 1, x, t, "eps")
        assert torch.allclose(pinned.predict(x, t), value, rtol=1e-12)
        assert torch.allclose(pinned.predict_jacobian(x, t)[1], jac, rtol=1e-12, atol=1e-13)
    t = torch.tensor([0.05, 0.2, 0.5, 1.0], dtype=F64)
    singly = torch.cat([pinned.predict(x[i : i + 1], float(s)) for i, s in enumerate(t)])
    assert torch.allclose(pinned.predict(x, t), singly, rtol=1e-13)
    assert not torch.allclose(score.predict(x, 0.9), pinned.predict(x, 0.9))
    assert [score.on_block(t).block for t in (0.0, 0.1, 0.3, 0.3001, 1.0)] == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("native", ["eps", "velocity"])
@pytest.mark.parametrize("arch", [Plain(hidden=(8,), times=0), WAVES], ids=str)
def test_points_freeze_the_time_and_the_coefficients(arch, native):
    """DPSM: within (t_{i-1}, t_i] field, coefficients and Jacobian are those of t_i, frozen to the block or not."""
    score, x, u = make(arch, native, discrete=True), points(6), points(6, 1)
    readings = {
        "velocity": lambda s, t: s.velocity(x, t),
        "score": lambda s, t: s.score(x, t),
        "both": lambda s, t: torch.cat(s.velocity_and_score(x, t)),
        "jacobian": lambda s, t: s.jacobian(x, t, "velocity")[1],
        "value": lambda s, t: s.jacobian(x, t, "velocity")[0],
        "divergence": lambda s, t: s.divergence(x, t),
        "jvp": lambda s, t: torch.cat(s.velocity_jvp(x, t, u)),
    }
    for name, read in readings.items():
        at_point = read(score, 0.3)
        for piece, t in itertools.product((score, score.on_block(0.3)), (0.1001, 0.2, 0.3)):
            assert torch.equal(read(piece, t), at_point), name
            assert torch.allclose(read(piece, torch.full((6,), t, dtype=F64)), at_point, rtol=1e-12, atol=1e-13), name
        assert torch.equal(read(score.on_block(0.2), 0.9), at_point), name
        assert not torch.allclose(read(score, 0.31), at_point) and not torch.allclose(read(score, 0.1), at_point)
    if native == "eps":
        sigma, f, g2 = (float(c(0.3)) for c in (P.sigma, P.drift, P.diffusion2))
        expected = f * x + g2 / (2 * sigma) * reference(score, 1, x, 0.3, "eps")[0]
        assert torch.allclose(score.velocity(x, 0.17), expected, rtol=1e-12)


@pytest.mark.parametrize("arch", ARCHS, ids=str)
@pytest.mark.parametrize("held", [torch.float32, F64], ids=str)
def test_answers_have_the_dtype_of_the_points(arch, held):
    score, exact = make(arch, dtype=held), make(arch)
    exact.bank.params = score.bank.params.double()
    for t in (0.2, torch.tensor([0.05, 0.2, 0.7], dtype=F64)):
        for dtype in (torch.float32, F64):
            x = points(3).to(dtype)
            for f in (score.eps, score.velocity, score.score, score.divergence):
                assert f(x, t).dtype == dtype
            answers = (*score.predict_jvp(x, t, x), *score.predict_jacobian(x, t))
            wanted = (*exact.predict_jvp(x.double(), t, x.double()), *exact.predict_jacobian(x.double(), t))
            for found, right in zip(answers, wanted, strict=True):
                assert found.dtype == dtype
                assert torch.allclose(found.double(), right, rtol=2e-5, atol=2e-5)


def test_answers_are_not_overwritten_by_the_next_call():
    score, x = make(), points(5)
    first = score.predict(x, 0.2), *score.predict_jacobian(x, 0.2), *score.predict_jvp(x, 0.2, x)
    kept = [a.clone() for a in first]
    score.predict(2 * x, 0.2), score.predict_jacobian(2 * x, 0.2), score.predict_jvp(2 * x, 0.2, -x)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_no_points_give_no_answers():
    score, none = make(WAVES), points(0)
    for t in (0.2, torch.empty(0, dtype=F64)):
        assert score.predict(none, t).shape == (0, 2)
        assert score.predict_jacobian(none, t)[1].shape == (0, 2, 2)
        assert score.predict_jvp(none, t, none)[1].shape == (0, 2)


def test_one_set_of_buffers_serves_every_block():
    score, n = Bank(SMALL, 50).score(Partition.equal(50), P), 40
    for k in range(50):
        score.on_block((k + 0.5) / 50).predict_jacobian(points(n), 0.5)
    held = {id(work): work for piece in (score, *score._pinned.values()) for work in piece._work.values()}
    assert len(held) == 1 and sum(len(w._act) for w in held.values()) == 3


def test_a_score_follows_its_bank_and_a_copy_does_not():
    score, x = make(), points(4)
    copy, low = score.bank.copy(), score.bank.to(dtype=torch.float32)
    before = score.predict(x, 0.2)
    score.bank.params.mul_(1.5)
    assert torch.allclose(score.predict(x, 0.2), reference(score, 1, x, 0.2, "eps")[0], rtol=1e-12)
    assert not torch.allclose(score.predict(x, 0.2), before)
    assert torch.equal(copy.score(score.partition, P).predict(x, 0.2), before)
    assert low.params.dtype == torch.float32 and torch.allclose(low.params.double(), copy.params, rtol=1e-6)
    assert copy.copy(params=2 * copy.params).params.equal(2 * copy.params) and (copy.native, copy.seed) == ("eps", 5)


@pytest.mark.parametrize("arch", ARCHS, ids=str)
def test_a_saved_bank_reads_back_equal(arch, tmp_path):
    bank = Bank(arch, 3, native="velocity", seed=9, dtype=F64)
    bank.save(tmp_path / "bank.st", process="VP", updates=[1, 2])
    again, about = Bank.load(tmp_path / "bank.st")
    assert torch.equal(again.params, bank.params) and again.params.dtype == F64
    assert (again.arch, again.native, again.seed) == (arch, "velocity", 9)
    assert about["process"] == "VP" and about["updates"] == [1, 2]
    x = points(3)
    for s in (bank, again):
        assert torch.equal(
            s.score(Partition(EDGES), P).predict(x, 0.2), bank.score(Partition(EDGES), P).predict(x, 0.2)
        )


def test_a_file_that_is_not_a_bank_is_refused(tmp_path):
    path = tmp_path / "other.st"
    save(path, {"params": torch.zeros(2)}, {"arch": repr(SMALL)})
    with pytest.raises(ValueError, match="other.st does not hold the networks of Bank") as error:
        Bank.load(path)
    assert one_sentence(error)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="other.st is not a checkpoint"):
        Bank.load(path)
    with pytest.raises(ValueError, match="no checkpoint at .*none.st"):
        Bank.load(tmp_path / "none.st")


def test_likelihoods_take_a_bank_and_never_mix_two_networks_in_a_step():
    """An Euler solve by hand, each step with the network of its middle, gives the same number."""
    score, x = make(WAVES), points(3)
    result = log_likelihood(score, P, x, t0=0.05, steps=20, method="euler")
    times = time_grid(score, P, 0.05, 1.0, 20, "uniform").tolist()
    assert {0.1, 0.3} <= set(times)
    y, change = x, torch.zeros(3, dtype=F64)
    for a, b in itertools.pairwise(times):
        k = 0 if (a + b) / 2 <= 0.1 else 1 if (a + b) / 2 <= 0.3 else 2
        eps, jac = reference(score, k, y, a, "eps")
        f, c = float(P.drift(a)), float(P.diffusion2(a) / (2 * P.sigma(a)))
        change = change + (b - a) * (2 * f + c * jac.diagonal(dim1=1, dim2=2).sum(1))
        y = y + (b - a) * (f * y + c * eps)
    assert torch.allclose(result.x_T, y, rtol=1e-9) and torch.allclose(result.change, change, rtol=1e-9)


def test_arguments_that_do_not_fit_are_named_in_one_sentence():
    bank = Bank(SMALL, 3)
    with pytest.raises(ValueError, match="size must be a positive whole number, got 0") as error:
        Bank(SMALL, 0)
    assert one_sentence(error)
    with pytest.raises(ValueError, match="holds 3 networks but .* has 2 blocks") as error:
        bank.score(Partition([0, 0.5, 1]), P)
    assert one_sentence(error)
    with pytest.raises(ValueError, match="ends at 0.9 but .* runs to T = 1") as error:
        bank.score(Partition([0, 0.1, 0.3, 0.9]), P)
    assert one_sentence(error)
    score = bank.score(Partition(EDGES), P)
    for f in (score.predict, lambda x, t: score.on_block(t)):
        with pytest.raises(ValueError, match="time 1.5 lies outside") as error:
            f(points(1), 1.5)
        assert one_sentence(error)
    with pytest.raises(ValueError, match="time -0.5 lies outside") as error:
        score.predict(points(2), torch.tensor([0.5, -0.5]))
    assert one_sentence(error)


@pytest.mark.parametrize("arch", [Plain(hidden=(9, 8, 7)), Conditioned(hidden=(9, 8, 7), octaves=3), Plain(times=0)])
@pytest.mark.parametrize("native", ["eps", "velocity"])
@pytest.mark.parametrize("t", [0.05, torch.linspace(0.01, 0.99, 13, dtype=torch.float64)])
def test_the_divergence_is_the_trace_of_the_velocitys_jacobian(arch, native, t):
    for partition in (Partition([0, 0.1, 1]), Partition.points([0.1, 1.0])):
        bank = Bank(arch, 2, native=native, seed=3, dtype=torch.float64)
        score = bank.score(partition, VP(0.0, 10.0))
        x = torch.randn(13, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        value, trace = score.velocity_and_divergence(x, t)
        expected, jac = score.jacobian(x, t, "velocity")
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(trace, jac.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-10, atol=1e-10)
