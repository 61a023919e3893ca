"""Adam against torch's own, SOAP against its paper, and the shape of the learning-rate schedules."""

import pytest
import torch
from torch import Tensor

from psmlib.kernels.bank_mlp import BankMLP, parameter_count
from psmlib.training.optim import OPTIMISERS, SCHEDULES, Adam, Soap, constant, one_cycle

F64 = torch.float64


def test_twenty_steps_equal_those_of_torch():
    g = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 11, dtype=F64, generator=g)
    theirs = torch.nn.Parameter(ours.clone())
    adam, optimiser = Adam(ours), torch.optim.Adam([theirs], lr=0.05)
    for i in range(20):
        lr = 0.05 / (1 + i)
        optimiser.param_groups[0]["lr"] = lr
        grad = torch.randn(3, 11, dtype=F64, generator=g) * 10.0 ** (i % 5 - 3)
        grad[0] = 0 if i < 4 else grad[0]  # a network that starts with no slope at all
        theirs.grad = grad.clone()
        optimiser.step()
        adam.step(ours, grad, lr=lr, count=i + 1)
        assert torch.allclose(ours, theirs.detach(), rtol=1e-13, atol=1e-14)
    state = optimiser.state[theirs]
    assert torch.allclose(adam.state["mean"], state["exp_avg"], rtol=1e-12, atol=1e-16)
    assert torch.allclose(adam.state["square"], state["exp_avg_sq"], rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("optimiser", [Adam, Soap])
def test_the_part_of_one_network_moves_that_network_only(optimiser):
    g, widths = torch.Generator().manual_seed(1), [3, 2, 2]
    whole = torch.randn(3, 14, dtype=F64, generator=g)
    single, rest = whole[1:2].clone(), whole[[0, 2]].clone()
    many, alone = optimiser(whole, widths), optimiser(single, widths)
    for i in range(50):
        grad = torch.randn(1, 14, dtype=F64, generator=g)
        many.part(slice(1, 2)).step(whole[1:2], grad.clone(), lr=0.1, count=i + 1)
        alone.step(single, grad, lr=0.1, count=i + 1)
    assert torch.equal(whole[1:2], single) and torch.equal(whole[[0, 2]], rest)
    for name, tensor in many.state.items():
        assert torch.equal(tensor[1:2], alone.state[name])
        assert torch.equal(tensor[[0, 2]], optimiser(whole, widths).state[name][[0, 2]])


def layer_gradients(n: int, a: int, b: int, seed: int) -> list[Tensor]:
    """Gradients of one layer with clearly unequal directions, so that eigenvectors are well defined."""
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(k, k, dtype=F64, generator=g))[0] for k in (a + 1, b))
    scales = 2.0 ** -torch.arange(a + 1, dtype=F64)[:, None] * 3.0 ** -torch.arange(b, dtype=F64)
    return [left @ (scales * torch.randn(a + 1, b, dtype=F64, generator=g)) @ right for _ in range(n)]


def test_soap_equals_adam_on_projections_with_the_momentum_kept_in_the_layers_own_axes():
    """Vyas et al., Algorithm 3, with our damped bases: ours turns the first moment along with the basis instead."""
    a, b, n, lr = 3, 2, 100, 0.01
    params, x = torch.zeros(1, (a + 1) * b, dtype=F64), torch.zeros(a + 1, b, dtype=F64)
    soap, M, V = Soap(params, [a, b]), torch.zeros_like(x), torch.zeros_like(x)

    def follow(S, Q):
        order = torch.stack([q @ S @ q for q in Q.T]).argsort(descending=True)
        return torch.linalg.qr(S @ Q[:, order] + Soap.damping * S.trace() * Q[:, order])[0], order

    for i, G in enumerate(layer_gradients(n, a, b, 0), 1):
        soap.step(params, G.reshape(1, -1).clone(), lr=lr, count=i)
        if i == 1:
            L, R = G @ G.T, G.T @ G
            QL, QR = follow(L, torch.eye(a + 1, dtype=F64))[0], follow(R, torch.eye(b, dtype=F64))[0]
        elif i % Soap.every == 0:
            L, R = (Soap.shampoo * s + (1 - Soap.shampoo) * new for s, new in ((L, G @ G.T), (R, G.T @ G)))
        M = Soap.beta1 * M + (1 - Soap.beta1) * G
        V = Soap.beta2 * V + (1 - Soap.beta2) * (QL.T @ G @ QR) ** 2
        root = (V / (1 - Soap.beta2**i)).sqrt()
        root = root + Soap.eps + Soap.noise * root.max()
        x = x - lr * QL @ (QL.T @ (M / (1 - Soap.beta1**i)) @ QR / root) @ QR.T
        assert torch.allclose(params.view(a + 1, b), x, rtol=1e-9, atol=1e-10), i
        if i % Soap.refresh == 0:
            QL, order = follow(L, QL)
            V = V[order]
            QR, order = follow(R, QR)
            V = V[:, order]


def test_soap_takes_networks_together_or_singly():
    a, b, n = 4, 3, 60
    gradients = torch.stack([torch.stack(layer_gradients(n, a, b, seed)).flatten(1) for seed in range(3)], 1)
    together = torch.zeros(3, (a + 1) * b, dtype=F64)
    singly = [together[k : k + 1].clone() for k in range(3)]
    whole, ones = Soap(together, [a, b]), [Soap(x, [a, b]) for x in singly]
    for i, grad in enumerate(gradients, 1):
        for k in range(3):
            ones[k].step(singly[k], grad[k : k + 1].clone(), lr=0.01, count=i)
        whole.step(together, grad.clone(), lr=0.01, count=i)
    assert torch.allclose(together, torch.cat(singly), rtol=1e-9, atol=1e-10)


def test_soap_does_not_care_how_the_axes_of_a_layer_are_turned():
    """For U G W in place of G, U and W orthogonal, and bases that start so, the path is U x W; that of Adam is not."""
    a, b = 3, 3
    g = torch.Generator().manual_seed(5)
    U, W = (torch.linalg.qr(torch.randn(k, k, dtype=F64, generator=g))[0] for k in (a + 1, b))
    ends = {}
    for optimiser in (Soap, Adam):
        plain, turned = (torch.zeros(1, (a + 1) * b, dtype=F64) for _ in range(2))
        one, two = optimiser(plain, [a, b]), optimiser(turned, [a, b])
        if optimiser is Soap:
            two.state["left0_basis"].copy_(U), two.state["right0_basis"].copy_(W.T)
        for i, G in enumerate(layer_gradients(60, a, b, 1), 1):
            one.step(plain, G.reshape(1, -1).clone(), lr=0.01, count=i)
            two.step(turned, (U @ G @ W).reshape(1, -1).clone(), lr=0.01, count=i)
        ends[optimiser] = float((U @ plain.view(a + 1, b) @ W - turned.view(a + 1, b)).abs().max())
    assert ends[Soap] < 1e-8 and ends[Adam] > 1e-2


@pytest.mark.parametrize("dead", [[0], [1, 6], [4, 5], [0, 2, 3]], ids=str)
def test_the_bases_stay_orthonormal_where_some_inputs_are_always_nothing(dead):
    """Damped waves are exactly 0 at high noise: those rows have no gradient, and no eigenvector of their own."""
    g = torch.Generator().manual_seed(2)
    params = torch.zeros(1, 7 * 20, dtype=F64)
    soap = Soap(params, [6, 20])
    for i in range(200):
        G = torch.randn(7, 20, dtype=F64, generator=g)
        G[dead] = 0
        soap.step(params, G.reshape(1, -1), lr=0.01, count=i + 1)
        for name, size in (("left0_basis", 7), ("right0_basis", 20)):
            Q = soap.state[name][0]
            assert torch.allclose(Q.T @ Q, torch.eye(size, dtype=F64), atol=1e-10), (i, name)
    assert float(params.view(7, 20)[dead].abs().max()) < 1e-6, "no slope, no step"
    late, before = torch.zeros(7, 20, dtype=F64), params.clone()
    late[dead] = 1.0
    soap.step(params, late.reshape(1, -1), lr=0.01, count=201)
    descent = (before - params).view(7, 20)[dead].sum(1)
    assert float(descent.min()) > 0.01, "a slope that comes late is followed"


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_rounding_does_not_choose_the_path(dtype):
    """A gradient of small rank leaves most eigenvectors open: what rounding makes of them must not matter."""
    widths, g, ends = [2, 24, 24, 1], torch.Generator().manual_seed(6), []
    x = torch.randn(1, 64, 2, dtype=F64, generator=g)
    start, shift = torch.randn(2, 1, parameter_count(widths), dtype=F64, generator=g)
    h, y = x.to(dtype), (3 * x).sin().sum(2, keepdim=True).to(dtype)
    for size in (0.0, 1e-7):
        params = (start / 4 * (1 + size * shift)).to(dtype)
        work, soap, grad = BankMLP(widths, h), Soap(params, widths), torch.empty_like(params)
        for i in range(100):
            work.gradient(params, h, y, grad, None)
            soap.step(params, grad, lr=3e-3, count=i + 1)
        ends.append(params.double())
    moved = float((ends[1] - ends[0]).norm() / ends[0].norm())
    assert moved < 5e-3, "0.36 or more where the first gradient's eigenvectors are taken as they come"


def test_soap_solves_an_ill_conditioned_regression_faster_than_adam():
    """Inputs of very unequal scales in turned axes: Adam, which looks at single weights, cannot see them."""
    g = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=F64, generator=g))[0]
    h = torch.randn(400, 5, dtype=F64, generator=g) @ torch.diag(10.0 ** -torch.arange(5, dtype=F64) * 10) @ turn
    h, y = torch.cat([h, torch.ones(400, 1, dtype=F64)], 1), None
    truth = torch.cat([turn.T, torch.zeros(1, 5, dtype=F64)])
    y, losses = h @ truth, {}
    for optimiser in (Soap, Adam):
        params = torch.zeros(1, 30, dtype=F64)
        steps = optimiser(params, [5, 5])
        for i in range(400):
            grad = h.T @ (h @ params.view(6, 5) - y) / 400
            steps.step(params, grad.reshape(1, -1), lr=one_cycle(0.1, 400)(i), count=i + 1)
        losses[optimiser] = float((h @ params.view(6, 5) - y).square().mean())
    assert losses[Soap] < losses[Adam] / 10, losses


def test_optimisers_are_known_by_name():
    assert {"adam": Adam, "soap": Soap} == OPTIMISERS


def test_constant_is_constant():
    rate = constant(3e-4, 100)
    assert {rate(i) for i in (0, 1, 50, 99)} == {3e-4}


@pytest.mark.parametrize("updates", [1, 2, 4, 7, 10, 200, 1003])
def test_one_cycle_is_that_of_torch_step_for_step(updates):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-3, updates, pct_start=0.2, div_factor=25, final_div_factor=40, cycle_momentum=False
    )
    rate, want = one_cycle(2e-3, updates), []
    for i in range(updates):
        want.append(theirs.get_last_lr()[0])
        optimiser.step()
        if i < updates - 1:
            theirs.step()
    assert [rate(i) for i in range(updates)] == pytest.approx(want, rel=1e-12)


def test_one_cycle_starts_at_its_peak_where_the_rise_is_one_update_long():
    """Five updates: torch's own divides 0 by 0 there."""
    assert one_cycle(2e-3, 5)(0) == pytest.approx(2e-3) and one_cycle(2e-3, 5)(4) == pytest.approx(2e-6)


def test_schedules_are_known_by_name():
    assert {"constant": constant, "one_cycle": one_cycle} == SCHEDULES
