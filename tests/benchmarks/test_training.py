"""The plain loop computes what `fit` computes, from the data that the toys are."""

import numpy as np
import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import training
from psmlib.benchmarks.plain import sequential
from psmlib.data.toys import load_toy
from psmlib.kernels.bank_mlp import BankMLP
from psmlib.nets.mlp import Plain
from psmlib.training.optim import Adam


def flat_gradient(net):
    """The gradients of a plain network in the order in which a bank keeps its parameters. Shape: (P,)."""
    linears = [module for module in net if isinstance(module, torch.nn.Linear)]
    return torch.cat([part.flatten() for each in linears for part in (each.weight.grad.mT, each.bias.grad)])


def test_a_plain_networks_gradient_and_adam_are_ours():
    bank, generator = Bank(Plain(), 1, dtype=torch.float64), torch.Generator().manual_seed(0)
    net = sequential(bank.params[0], bank.arch.widths)
    loop = training.Loop(lambda: torch.empty(0), net)
    grad, adam = torch.empty_like(bank.params), Adam(bank.params)
    for count in range(1, 4):
        h = torch.randn(32, 4, generator=generator, dtype=torch.float64)
        target = torch.randn(32, 2, generator=generator, dtype=torch.float64)
        loss = BankMLP(bank.arch.widths, h[None]).gradient(bank.params, h[None], target[None], grad)
        torch.testing.assert_close(loop.backward(h, target).detach(), loss[0])
        torch.testing.assert_close(flat_gradient(net), grad[0], rtol=1e-9, atol=1e-14)
        loop.optimiser.step()
        adam.step(bank.params, grad, lr=training.LR, count=count)
        again = sequential(bank.params[0], bank.arch.widths)
        for ours, theirs in zip(again.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["TY", "HG"])
def test_the_pool_is_the_toy(name):
    toy, size = load_toy(name), training.POOLS[name]
    shares = toy.weights * size
    assert (shares - shares.round()).abs().max() < 1e-6  # every component has a whole number of points
    points = torch.tensor(training.pool(toy, size, np.random.RandomState(0)))
    assert points.shape == (size, 2) and bool(toy.log_prob(points).isfinite().all())
    # shares are exact, so only the spread within components is left to chance: five standard errors
    spread = toy.cov.diagonal().sqrt()
    assert ((points.mean(0) - toy.mean).abs() < 5 * spread / size**0.5).all()
    assert ((points.var(0) / toy.cov.diagonal()).log().abs() < 0.05).all()
    start = 0  # and each component's points lie around its own centre
    for k, n in enumerate(shares.round().int().tolist()):
        own = points[start : start + n]
        within = toy._factors[k].square().sum(1).sqrt()
        assert ((own.mean(0) - toy.centres[k]).abs() < 5 * within / n**0.5).all(), k
        start += n


def test_a_batch_from_the_pool_has_no_point_twice():
    batch = training.from_pool(load_toy("HG"), training.POOLS["HG"])()
    assert batch.shape == (512, 2) and len(batch.unique(dim=0)) == 512


def test_the_plain_loop_learns():
    bank, toy = Bank(Plain(), 1), load_toy("HG")
    for draw in (training.from_pool(toy, training.POOLS["HG"]), training.from_mixture(toy)):
        loop = training.Loop(draw, sequential(bank.params[0], bank.arch.widths))
        first = loop.run(1)
        assert loop.run(60) < 0.8 * first
