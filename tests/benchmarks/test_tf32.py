"""Rounding to ten bits, and networks whose products are rounded so."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psmlib.bank.mlp_bank import Bank
from psmlib.benchmarks.tf32 import CutMLP, RoundedMLP, RoundedUpdates, cut
from psmlib.data.toys import HG
from psmlib.kernels.bank_mlp import BankMLP, bank_mlp_ref, parameter_count
from psmlib.kernels.tf32 import rounded
from psmlib.nets.mlp import Plain
from psmlib.partition import Partition
from psmlib.process import VP
from psmlib.training import fit


@given(st.floats(-(2.0**99), 2.0**99, width=32).filter(lambda v: abs(v) > 1e-30 or v == 0))
def test_rounding_is_to_the_nearest(value):
    x = torch.tensor([value], dtype=torch.float32)
    y = rounded(x)
    assert torch.equal(rounded(y), y)  # what is short already stays
    assert float((y - x).abs()) <= 2.0**-11 * float(x.abs())
    assert int(y.view(torch.int32)) & 0x1FFF == 0


@given(st.floats(-(2.0**99), 2.0**99, width=32).filter(lambda v: abs(v) > 1e-30 or v == 0))
def test_cutting_is_towards_zero(value):
    x = torch.tensor([value], dtype=torch.float32)
    y = cut(x)
    assert torch.equal(cut(y), y) and float(y.abs()) <= float(x.abs())
    assert float((y - x).abs()) < 2.0**-10 * float(x.abs()) or value == 0


def test_errors_of_one_sign_add_up():
    g, widths = torch.Generator().manual_seed(0), [4, 100, 150, 100, 2]
    flat = torch.randn(1, parameter_count(widths), generator=g) * 0.1
    h, y = (torch.randn(1, 256, w, generator=g) for w in (4, 2))
    exact, found = torch.empty(flat.shape, dtype=torch.float64), torch.empty_like(flat)
    BankMLP(widths, h.double()).gradient(flat.double(), h.double(), y.double(), exact)
    errors = []
    for kind in (RoundedMLP, CutMLP):
        kind(widths, h).gradient(flat, h, y, found)
        errors.append(float((found - exact).norm()))
    assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("f", [rounded, cut])
def test_other_dtypes_are_refused(f):
    with pytest.raises(ValueError, match="tf32 is a format of float32 numbers, got torch.float64"):
        f(torch.zeros(1, dtype=torch.float64))


def test_exact_on_short_numbers():
    """Small integers have few bits: a linear network of them loses nothing, nor do its deltas."""
    g = torch.Generator().manual_seed(0)
    widths = [3, 2]
    flat = torch.randint(-8, 9, (2, parameter_count(widths)), generator=g).float()
    h, y = (torch.randint(-8, 9, (2, 4, w), generator=g).float() for w in widths)
    grads = [torch.empty_like(flat) for _ in range(2)]
    losses = [
        kind(widths, h).gradient(flat, h, y, grad) for kind, grad in zip((RoundedMLP, BankMLP), grads, strict=True)
    ]
    assert torch.equal(*losses)
    assert torch.equal(*grads)  # of four rows and two outputs: the deltas are divided by a power of two


def test_gradient_is_nearly_the_derivative():
    g = torch.Generator().manual_seed(0)
    widths = [4, 20, 30, 20, 2]
    flat = torch.randn(2, parameter_count(widths), generator=g) * 0.3
    h, y = torch.randn(2, 64, 4, generator=g), torch.randn(2, 64, 2, generator=g)
    exact = flat.double().requires_grad_(True)
    (bank_mlp_ref(exact, widths, h.double()) - y).square().mean((1, 2)).sum().backward()
    errors = []
    for kind in (RoundedMLP, BankMLP):
        grad = torch.empty_like(flat)
        kind(widths, h).gradient(flat, h, y, grad)
        errors.append(float((grad - exact.grad).norm() / exact.grad.norm()))
    assert 1e-5 < errors[0] < 2e-3 and errors[1] < 1e-6


def test_an_engine_of_rounded_products_learns_as_well():
    losses = []
    for engine in ("products", RoundedUpdates):
        bank = Bank(Plain(hidden=(20, 30, 20)), 2)
        run = dict(updates=150, batch_size=64, engine=engine)
        for progress in fit(bank, HG(), VP(0.0, 10.0), Partition([0, 0.1, 1]), **run):  # noqa: B007
            pass
        losses.append(progress.loss)
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=5e-3, atol=0)
