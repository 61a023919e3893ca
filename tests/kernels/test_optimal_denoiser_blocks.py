"""The optimal denoiser as a program: blocks, memory, work left out, precision settings and inputs."""

import importlib

import pytest
import torch

from psmlib.kernels import optimal_denoiser
from psmlib.kernels.online_posterior import exact_products
from psmlib.kernels.optimal_denoiser import optimal_denoiser_ref, posterior, score_divergence, top_weights
from psmlib.machine.memory import HeldBytes

distances = importlib.import_module("psmlib.kernels.squared_distances")
F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def everything(x, data, alpha, sigma):
    found = posterior(x, data, alpha, sigma, tangent=x.flip(0))
    return (*found, optimal_denoiser(x, data, alpha, sigma), *top_weights(x, data, alpha, sigma, min(5, len(data))))


def test_the_public_name_is_the_function_whatever_was_imported():
    module = importlib.import_module("psmlib.kernels.optimal_denoiser")
    package = importlib.import_module("psmlib.kernels")
    assert module.posterior is posterior
    assert package.optimal_denoiser is module.optimal_denoiser is optimal_denoiser and callable(optimal_denoiser)


# Blocks


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (7, 64), (64, 7), (1000, 1000)], ids=str)
@pytest.mark.parametrize("d", [3, 20])
def test_the_size_of_the_blocks_makes_no_difference(d, sizes, monkeypatch):
    x, data = draw(23, d), draw(61, d, seed=1)
    data[40:50] = data[:10] + 1e-3
    sigma = torch.logspace(-5, 1, 23, dtype=F64)
    x[:] = 0.7 * data[:23] + sigma[:, None] * x
    whole = everything(x, data, 0.7, sigma)
    monkeypatch.setitem(distances.SIZES, "cpu", sizes)
    monkeypatch.setitem(distances.PAIRS, "cpu", 5 * d)
    monkeypatch.setitem(distances.ELEMENTS, "cpu", 50 * d)
    for a, b in zip(whole, everything(x, data, 0.7, sigma), strict=True):
        scale = a.abs().amax() if a.dtype == F64 else 1
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 7), ()], ids=str)
def test_images_and_strided_tensors_are_taken_as_they_are(shape):
    """One size for each axis of an image; a lone number is an axis of its own; a time of its own for every image."""
    x, data, sigma = draw(17, *shape), draw(900, *shape, seed=1), torch.logspace(-3, 1, 17, dtype=F64)
    flat = [t.reshape(len(t), -1) for t in (x, data)]
    expected = everything(*flat, 0.9, sigma)
    wide = draw(1800, *shape)
    wide[::2] = data
    back = torch.arange(16, -1, -1)
    for given in ((x, data), (x, wide[::2]), (x[back][back], data.movedim(0, -1).clone().movedim(-1, 0))):
        found = everything(*given, 0.9, sigma)
        assert found[0].shape == found[1].shape == found[4].shape == x.shape
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.reshape(b.shape), b, rtol=1e-10, atol=1e-12)


def test_a_coefficient_may_be_a_number_or_a_tensor_of_any_kind():
    x, data = draw(5, 30), draw(50, 30, seed=1)
    expected = optimal_denoiser(x, data, 0.5, 0.25)
    tensor = torch.tensor
    for alpha, sigma in ((tensor(0.5), tensor(0.25)), (tensor([0.5] * 5), 0.25), (0.5, tensor([0.25] * 5, dtype=F64))):
        assert torch.equal(optimal_denoiser(x, data, alpha, sigma), expected)
        torch.testing.assert_close(optimal_denoiser_ref(x, data, alpha, sigma), expected)


def test_no_points_are_no_error():
    x, data = draw(0, 3), draw(5, 3)
    assert [tuple(t.shape) for t in everything(x, data, 1.0, 1.0)] == [(0, 3)] * 2 + [(0,)] * 2 + [(0, 3)] * 2 + [
        (0, 5)
    ] * 2


# Memory and work


def held(B: int, N: int, d: int, sigma: float, spread: float = 1.0) -> int:
    """Most bytes at a time beyond points and data."""
    data = spread * draw(N, d, dtype=torch.float32) + 3
    data[::2] -= 1
    x = data[torch.arange(B) % N] + sigma * draw(B, d, seed=1, dtype=torch.float32)
    with HeldBytes(x, data) as count:
        everything(x, data, 1.0, sigma)
    return count.peak


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("sigma", [1e-4, 0.3, 30.0])
def test_memory_does_not_grow_with_the_data(sigma, d, monkeypatch):
    monkeypatch.setitem(distances.SIZES, "cpu", (32, 64))
    monkeypatch.setitem(distances.PAIRS, "cpu", 1024)
    small, large = held(40, 1000, d, sigma), held(40, 8000, d, sigma)
    assert large <= 1.1 * small
    if d == 40:
        assert large < 0.3 * 8000 * d * 4  # far less than the data


def test_memory_does_not_grow_when_everything_is_to_be_taken_again(monkeypatch):
    """Two tight clusters far apart: all points of one are as near as the distances by a product can tell."""
    monkeypatch.setitem(distances.PAIRS, "cpu", 1024)
    assert held(40, 600, 40, 1e-3, spread=1e-4) <= 2 * held(40, 600, 40, 1e-3)


def test_memory_grows_with_the_points_as_the_points_do(monkeypatch):
    monkeypatch.setitem(distances.SIZES, "cpu", (256, 64))
    B, N, d = 2000, 1000, 40
    extra = held(2 * B, N, d, 0.3) - held(B, N, d, 0.3)
    assert extra < 12 * B * d * 4 < B * N * 4


@pytest.mark.parametrize("sigma, share", [(1e-3, 0.45), (30.0, 1.0)])
def test_the_second_product_is_left_out_where_nothing_weighs(sigma, share, monkeypatch):
    monkeypatch.setitem(distances.SIZES, "cpu", (64, 64))
    data = draw(6400, 40)
    x = data[:64] + sigma * draw(64, 40, seed=1)
    rows = []
    honest = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda t, a, b: rows.append(len(a)) or honest(t, a, b))
    optimal_denoiser(x, data, 1.0, sigma)
    assert sum(rows) <= share * len(x) * 100 and (share < 1 or sum(rows) == 6400)


# Precision settings


def test_full_precision_whatever_is_allowed_outside():
    x, data = draw(40, 64, dtype=torch.float32), draw(300, 64, seed=1, dtype=torch.float32)
    expected = optimal_denoiser(x, data, 1.0, 0.5)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with exact_products():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        with pytest.raises(RuntimeError), exact_products():
            raise RuntimeError
        assert matmul.fp32_precision == "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = optimal_denoiser(x, data, 1.0, 0.5)
    finally:
        matmul.fp32_precision = before
    assert torch.equal(found, expected)


# Refusals


def bad_inputs():
    x, data = draw(4, 2, 3), draw(5, 2, 3, seed=1)
    nan, yes = float("nan"), {"x": x, "data": data, "alpha": 1.0, "sigma": 0.5}
    yield yes | {"data": data.mul(9).byte()}, "data have dtype torch.uint8: scale them and convert with data.float"
    yield yes | {"data": data.half(), "x": x.half()}, "data have dtype torch.float16: scale"
    yield yes | {"x": x.float()}, "x has dtype torch.float32 but data have torch.float64: convert one of them"
    yield yes | {"data": data[:0]}, r"data of shape \(0, 2, 3\) are empty: give at least one point"
    yield yes | {"x": x[:, :1]}, r"x must have shape \(B, 2, 3\), got \(4, 1, 3\)"
    yield yes | {"x": x.flatten(1)}, r"x must have shape \(B, 2, 3\), got \(4, 6\)"
    yield yes | {"x": x.to("meta")}, "x is on meta but data are on cpu: move one of them"
    yield yes | {"x": x.where(x > 0, nan)}, "x must be finite and not too large for torch.float64"
    yield yes | {"data": data.where(data > 0, nan)}, "data must be finite and not too large"
    yield yes | {"sigma": 0.0}, "sigma must be positive in torch.float64, got 0: without noise there is none to be read"
    yield yes | {"sigma": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "sigma must be positive in torch.float64, got -1"
    yield yes | {"sigma": torch.ones(5)}, r"sigma must be a number or have shape \(4,\), got \(5,\)"
    yield yes | {"alpha": nan}, "alpha has values that are not finite: clean it first"


@pytest.mark.parametrize("given, words", list(bad_inputs()), ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_a_wrong_input_is_one_sentence(given, words):
    calls = [optimal_denoiser, posterior, score_divergence, lambda **kw: top_weights(**kw, k=1)]
    for call in calls:
        with pytest.raises(ValueError, match=words) as caught:
            call(**given)
        assert "\n" not in str(caught.value)


def test_a_value_that_is_not_finite_is_found_in_any_block(monkeypatch):
    monkeypatch.setitem(distances.SIZES, "cpu", (64, 64))
    data = draw(6400, 12)
    data[6337, 5] = float("inf")
    with pytest.raises(ValueError, match="data must be finite"):
        optimal_denoiser(draw(3, 12), data, 1.0, 1.0)


def test_wrong_tangents_and_counts_are_named():
    x, data = draw(4, 3), draw(5, 3, seed=1)
    with pytest.raises(ValueError, match=r"tangent must have shape \(4, 3\), got \(3,\)"):
        posterior(x, data, 1.0, 1.0, tangent=x[0])
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k must be between 1 and the number of data points, 5, got {k}"):
            top_weights(x, data, 1.0, 1.0, k)
