"""The Score of a bank of image networks, against the modules alone and Jacobians by automatic differentiation."""

import itertools

import pytest
import torch
from torch import Tensor

from psmlib.bank.image_bank import ImageBank
from psmlib.bank.image_score import ImageScore
from psmlib.likelihood import log_likelihood
from psmlib.nets import ronneberger
from psmlib.nets.ronneberger import Ronneberger
from psmlib.nets.unet import UNet
from psmlib.partition import Partition
from psmlib.process import VP, OTFlow

F64 = torch.float64
P = VP(0.0, 10.0)
EDGES = [0, 0.1, 0.3, 1]
UNET = UNet(4, (1,), channels=1, blocks=1, attention=None, middle="full", heads=1, head_dim=4, groups=2, dtype=F64)
NETS = {
    "unet": UNET,
    "ronneberger": Ronneberger(2, 2, 2, dtype=F64, channels_last=True),
    "batch at test": Ronneberger(2, 2, 2, dtype=F64, batch_at_test=True),
}
# torch's own forward mode calls what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
alone = pytest.mark.parametrize("net", [NETS["unet"], NETS["ronneberger"]], ids=["unet", "ronneberger"])


def images(net, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, net.channels, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make(net, native="eps", process=P, **partition) -> ImageScore:
    bank = ImageBank(net, 3, native=native, seed=5)
    bank.buffers.copy_(torch.rand(bank.buffers.shape, dtype=F64, generator=torch.Generator().manual_seed(1)) + 0.5)
    return bank.score(Partition(EDGES, **partition), process)


def reference(score: ImageScore, k: int, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
    """What network k says of all images together, and the Jacobian of all its values in all of theirs."""
    net = score.bank.network(k)

    def f(y: Tensor) -> Tensor:
        return net(*net.inputs(y, t, score.process))

    n, D = len(x), x[0].numel()
    return f(x).detach(), torch.func.jacrev(f)(x).reshape(n, D, n, D).detach()


def block(t: float) -> int:
    return 0 if t <= 0.1 else 1 if t <= 0.3 else 2


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-10)


@each_net
@pytest.mark.parametrize("t", [0.1, 0.3])
def test_forms_and_traces_are_those_of_the_jacobian(net, t):
    score, x, u = make(net), images(net, 3), images(net, 3, 1)
    value, jac = reference(score, block(t), x, t)
    v = u.flatten(1)
    traces = torch.stack([jac[i, :, i].trace() for i in range(3)])
    close(score.predict(x, t), value)
    for answer in (score.predict_quadratic(x, t, u), score.predict_trace(x, t), score.predict_jvp(x, t, u)):
        close(answer[0], value)
    close(score.predict_trace(x, t)[1], traces)
    slope = score.predict_jvp(x, t, u)[1].flatten(1)
    close(slope, torch.einsum("iajb,jb->ia", jac, v))
    form = score.predict_quadratic(x, t, u)[1]
    close(form, torch.einsum("ia,iajb,jb->j", v, jac, v))
    close(form.sum(), (slope * v).sum())
    if net is NETS["batch at test"]:
        assert not torch.allclose(form, (slope * v).sum(1)), "where images meet the sides share it out differently"
        apart = jac[~torch.eye(3, dtype=torch.bool)[:, None, :, None].expand_as(jac)]
        assert float(apart.abs().max()) > 1e-3, "they do meet"
    else:
        close(form, (slope * v).sum(1))
        close(score.predict_jacobian(x, t)[1], torch.stack([jac[i, :, i] for i in range(3)]))


def test_a_form_of_meeting_images_averages_to_each_images_own_trace():
    net = NETS["batch at test"]
    score, x = make(net), images(net, 2)
    g = torch.Generator().manual_seed(0)
    probes = [(2 * torch.randint(0, 2, x.shape, generator=g) - 1).double() for _ in range(400)]
    forms = torch.stack([score.predict_quadratic(x, 0.2, u)[1] for u in probes])
    error = (forms.mean(0) - score.predict_trace(x, 0.2)[1]) / (forms.std(0) / 20)
    assert bool((error.abs() < 4).all())


@alone
@pytest.mark.parametrize("native, process", [("eps", P), ("velocity", OTFlow())])
def test_readings_follow_from_the_network_and_its_jacobian(net, native, process):
    score, x, u, t = make(net, native, process), images(net, 2), images(net, 2, 1), 0.2
    value, jac = reference(score, 1, x, t)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    rates = float(process.alpha_rate(t)), float(process.sigma_rate(t))
    a, b = (rates[0] / alpha, rates[1] - rates[0] * sigma / alpha) if native == "eps" else (0.0, 1.0)
    eye, own = torch.eye(x[0].numel(), dtype=F64), torch.stack([jac[i, :, i] for i in range(2)])
    slope = a * eye + b * own
    velocity = a * x + b * value
    close(score.velocity(x, t), velocity)
    for found, form in (
        (score.velocity_and_divergence(x, t), slope.diagonal(dim1=1, dim2=2).sum(1)),
        (score.velocity_and_quadratic(x, t, u), torch.einsum("ia,iab,ib->i", u.flatten(1), slope, u.flatten(1))),
    ):
        close(found[0], velocity)
        close(found[1], form)


@each_net
@pytest.mark.parametrize("discrete", [False, True])
def test_a_time_each_goes_to_its_own_block(net, discrete):
    score = make(net, discrete=discrete)
    t = torch.tensor([0.3, 0.05, 0.1, 1.0, 0.7, 0.02, 0.1 + 1e-12, 0.3], dtype=F64)
    x, u = images(net, len(t)), images(net, len(t), 1)
    value, form, trace = torch.empty_like(x), torch.empty(len(t), dtype=F64), torch.empty(len(t), dtype=F64)
    for k in range(3):
        rows = torch.tensor([i for i, s in enumerate(t.tolist()) if block(s) == k])
        asked = torch.full_like(t[rows], EDGES[k + 1]) if discrete else t[rows]
        value[rows], jac = reference(score, k, x[rows], asked)
        v = u[rows].flatten(1)
        form[rows] = torch.einsum("ia,iajb,jb->j", v, jac, v)
        trace[rows] = torch.stack([jac[i, :, i].trace() for i in range(len(rows))])
    for found, wanted in (
        ((score.predict(x, t),), (value,)),
        (score.predict_quadratic(x, t, u), (value, form)),
        (score.predict_trace(x, t), (value, trace)),
    ):
        for a, b in zip(found, wanted, strict=True):
            close(a, b)


@alone
def test_one_time_for_all_and_a_frozen_block(net):
    score, x = make(net), images(net, 2)
    for t in (0.0001, 0.1, 0.1001, 0.3, 0.9, 1.0):
        close(score.predict(x, t), reference(score, block(t), x, t)[0])
        assert score.on_block(t).block == block(t)
    pinned = score.on_block(0.2)
    assert pinned.on_block(0.9) is pinned and pinned is score.on_block(0.25)
    for t in (0.05, 0.9, torch.tensor([0.05, 0.9], dtype=F64)):
        close(pinned.predict(x, t), reference(score, 1, x, t)[0])


@pytest.mark.parametrize("native", ["eps", "velocity"])
def test_points_freeze_the_time_and_the_coefficients(native):
    """DPSM: within (t_{i-1}, t_i] field, coefficients and Jacobian are those of t_i, frozen to the block or not."""
    score = make(UNET, native, discrete=True)
    x, u = images(UNET, 2), images(UNET, 2, 1)
    readings = {
        "velocity": lambda s, t: s.velocity(x, t),
        "score": lambda s, t: s.score(x, t),
        "divergence": lambda s, t: torch.cat([a.flatten() for a in s.velocity_and_divergence(x, t)]),
        "quadratic": lambda s, t: torch.cat([a.flatten() for a in s.velocity_and_quadratic(x, t, u)]),
        "jacobian": lambda s, t: s.jacobian(x, t, "velocity")[1],
    }
    value = reference(score, 1, x, 0.3)[0]
    for name, read in readings.items():
        at_point = read(score, 0.3)
        for piece, t in itertools.product((score, score.on_block(0.3)), (0.1001, 0.2)):
            close(read(piece, t), at_point)
            close(read(piece, torch.full((2,), t, dtype=F64)), at_point)
        assert not torch.allclose(read(score, 0.31), at_point), name
    if native == "eps":
        sigma, f, g2 = (float(c(0.3)) for c in (P.sigma, P.drift, P.diffusion2))
        close(score.velocity(x, 0.17), f * x + g2 / (2 * sigma) * value)


@alone
@pytest.mark.parametrize("t", [0.2, torch.tensor([0.2, 0.9, 0.05, 0.2, 0.3, 0.1, 0.2], dtype=F64)], ids=["one", "each"])
def test_pieces_make_no_difference(net, t, monkeypatch):
    score, x, u = make(net), images(net, 7), images(net, 7, 1)

    def answers():
        return (
            score.predict(x, t), *score.predict_jvp(x, t, u), *score.predict_quadratic(x, t, u),
            *score.predict_trace(x, t), *score.predict_jacobian(x, t),
        )  # fmt: skip

    whole, calls = answers(), []
    network = ImageScore._network
    monkeypatch.setattr(ImageScore, "_rows", lambda self, y: 3)
    monkeypatch.setattr(ImageScore, "_network", lambda self, k, y, s: calls.append(len(y)) or network(self, k, y, s))
    for a, b in zip(whole, answers(), strict=True):
        close(a, b)
    assert calls[:4] == ([3, 3, 1, 3] if isinstance(t, float) else [2, 3, 1, 1])


@alone
def test_the_layout_of_the_images_makes_no_difference(net):
    """Images that were read channels last keep those strides through dequantisation."""
    score, x, u = make(net), images(net, 3), images(net, 3, 1)
    turned, t = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), torch.tensor([0.05, 0.2, 0.05], dtype=F64)
    for name, more in (
        ("predict_trace", [t]), ("jacobian", [t]), ("trace_gradient", [0.2]), ("predict_quadratic", [t, u]),
        ("predict_jvp", [0.2, u]),
    ):  # fmt: skip
        for found, right in zip(*(getattr(score, name)(y, *more) for y in (turned, x)), strict=True):
            close(found, right)


def test_images_that_meet_are_never_cut_into_pieces():
    bank = ImageBank(ronneberger.small(a=2, levels=2, dtype=F64), 1)
    x = torch.randn(600, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert bank.score(Partition([0, 1]), P)._rows(x) < 600, "others are"
    together = bank.changed(batch_at_test=True).score(Partition([0, 1]), P)
    close(together.predict(x, 0.5), bank.changed(batch_at_test=True).network(0)(x))
    assert not torch.allclose(together.predict(x, 0.5)[:300], together.predict(x[:300], 0.5))


def test_images_that_meet_have_no_jacobian_each():
    score, x = make(NETS["batch at test"]), images(NETS["batch at test"], 2)
    for f in (
        lambda: score.jacobian(x, 0.5), lambda: score.divergence(x, 0.5), lambda: score.trace_gradient(x, 0.5),
        lambda: log_likelihood(score, P, x, t0=0.1, steps=1, method="euler", divergence="logdet"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="batch_at_test makes an image's output depend on the others") as error:
            f()
        assert "\n" not in str(error.value) and ". " not in str(error.value)


@each_net
def test_no_images_give_no_answers(net):
    score, none = make(net), images(net, 0)
    for t in (0.2, torch.empty(0, dtype=F64)):
        assert score.predict(none, t).shape == score.velocity(none, t).shape == (0, net.channels, 2, 2)
        for found in (score.predict_quadratic(none, t, none), score.predict_trace(none, t)):
            assert found[0].shape == none.shape and found[1].shape == (0,)
    if net is not NETS["batch at test"]:
        assert score.predict_jacobian(none, 0.2)[1].shape == (0, 4 * net.channels, 4 * net.channels)


@each_net
def test_answers_have_the_dtype_of_the_points(net):
    wide, x = make(net), images(net, 4)
    score = wide.bank.to(dtype=torch.float32).score(wide.partition, P)
    for t in (0.2, torch.tensor([0.05, 0.7, 0.05, 0.7], dtype=F64)):
        for y in (x, x.float()):
            for found, right in (
                (score.predict_quadratic(y, t, y), wide.predict_quadratic(x, t, x)),
                (score.predict_trace(y, t), wide.predict_trace(x, t)),
                (score.velocity_and_divergence(y, t), wide.velocity_and_divergence(x, t)),
            ):
                for a, b in zip(found, right, strict=True):
                    assert a.dtype == y.dtype
                    torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@alone
def test_derivatives_of_a_score_that_was_never_asked_before(net):
    """A network that was made within a transformation of torch.func would be of no use outside it."""
    x, u, h = images(net, 2), images(net, 2, 1), 1e-5
    t = torch.tensor([0.05, 0.7], dtype=F64)

    def fresh(f):
        first = make(net)
        answers = [f(first) for _ in range(2)]
        close(first.predict(x, t), make(net).predict(x, t))
        assert torch.equal(*answers)
        for weight in first.bank.network(0).parameters():
            assert weight.untyped_storage().data_ptr() == first.bank.params.untyped_storage().data_ptr()
        return answers[0]

    score = make(net)
    close(fresh(lambda s: s.predict_jvp(x, 0.05, u)[1]), score.predict_jvp(x, 0.05, u)[1])
    slope = fresh(lambda s: s.predict_jvp(x, 0.2, u)[1])
    close(slope, (score.predict(x + h * u, 0.2) - score.predict(x - h * u, 0.2)) / (2 * h), rtol=1e-4)
    change = (score.divergence(x + h * u, t) - score.divergence(x - h * u, t)) / (2 * h)
    found = (fresh(lambda s: s.trace_gradient(x, t)) * u).flatten(1).sum(1)
    torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-5)
    rate = (score.score(x, t + h) - score.score(x, t - h)) / (2 * h)
    torch.testing.assert_close(fresh(lambda s: s.time_derivative(x, t)), rate, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"choose it by on_block\(t\)"):
        score.differentiable(x, torch.tensor(0.5))
