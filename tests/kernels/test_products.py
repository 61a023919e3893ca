"""Products by numpy and by torch, the choice between them, and the one thread of numpy's library."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import ThreadpoolController

from psmlib.kernels import products
from psmlib.kernels.products import PRODUCTS, one_thread, product


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Each test chooses anew, and leaves no choice behind."""
    monkeypatch.delenv("PSMLIB_PRODUCTS", raising=False)
    product.cache_clear()
    yield
    product.cache_clear()


@pytest.mark.parametrize("name", PRODUCTS)
def test_both_multiply_in_place(name):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 7, 5, generator=g, dtype=torch.float64)[1] for _ in range(2))
    see, multiply = PRODUCTS[name]
    out = torch.zeros(9, 7, dtype=torch.float64)[1:8]
    multiply(see(a), see(b.mT), out=see(out))
    torch.testing.assert_close(out, (a[:, None] * b).sum(-1))


@pytest.mark.parametrize("seconds, chosen", [((3.0, 1.0), "torch"), ((1.2, 1.0), "numpy"), ((1.0, 3.0), "numpy")])
def test_numpy_is_left_for_what_is_faster_by_far(monkeypatch, seconds, chosen):
    monkeypatch.setattr(products, "_seconds", dict(zip(("numpy", "torch"), seconds, strict=True)).get)
    assert product() is PRODUCTS[chosen]


def test_the_environment_decides(monkeypatch):
    monkeypatch.setattr(products, "_seconds", None)  # nothing is measured
    monkeypatch.setenv("PSMLIB_PRODUCTS", "torch")
    assert product() is PRODUCTS["torch"]
    product.cache_clear()
    monkeypatch.setenv("PSMLIB_PRODUCTS", "blis")
    with pytest.raises(ValueError, match="unknown PSMLIB_PRODUCTS 'blis': use one of numpy, torch"):
        product()


def test_the_process_keeps_to_one_thread():
    """Set back and forth, OpenBLAS has been seen to wake all threads for each product."""
    counts = lambda: {each.num_threads for each in ThreadpoolController().select(user_api="blas").lib_controllers}  # noqa: E731

    def work(_):
        with one_thread():
            return counts()

    with ThreadPoolExecutor(4) as pool:
        assert all(found == {1} for found in pool.map(work, range(20)))
    assert counts() == {1}
