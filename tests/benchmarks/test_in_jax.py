"""The JAX programs, where JAX is installed, do what psmlib does."""

import pytest
import torch

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks import in_jax
from psmlib.benchmarks.likelihood import by_psmlib
from psmlib.data.toys import load_toy
from psmlib.nets.mlp import Plain
from psmlib.partition import SA
from psmlib.process import VP
from psmlib.sampling import grids

pytestmark = pytest.mark.skipif(in_jax.jax is None, reason="JAX, an optional extra, is not installed")


def test_likelihoods_are_ours():
    bank, process = Bank(Plain(), 1), VP(0.0, 10.0)
    x = load_toy("HG").sample(50, torch.Generator().manual_seed(0)).float()
    state, times = (x, x.new_zeros(50)), grids.uniform(0.01, 1.0, 20)
    found = in_jax.likelihood(bank.params[0], bank.arch.widths, state, times)
    for ours, theirs in zip(by_psmlib(bank.score(SA, process), process, state, times), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_training_learns():
    bank = Bank(Plain(), 1)
    updates = in_jax.training(load_toy("HG"), bank.params[0], bank.arch.widths, 64, 1e-3)
    first = updates(20)
    assert updates(200) < 0.8 * first
