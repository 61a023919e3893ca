"""Layers of Glow: inverses, and log determinants compared with automatic differentiation."""

import math

import pytest
import torch

from psmlib.machine.streams import stream
from psmlib.nets.glow_layers import LOG_SCALE, ActNorm, Coupling, InvertibleConv, Split, Step, bounded, convolution

F64 = torch.float64
C, SIDES = 4, (2, 3)


class Whole(torch.nn.Module):
    """A split as one map: what stays and what leaves side by side."""

    def __init__(self, channels):
        super().__init__()
        self.split = Split(channels)

    def forward(self, x):
        kept, latent, log_det = self.split(x)
        return torch.cat([kept, latent], 1), log_det

    def inverse(self, y):
        return self.split.inverse(*y.chunk(2, 1))


class Matrix(torch.nn.Module):
    """The matrix of a 1x1 convolution as a function of its parameters."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self):
        return self.of.matrix()


LAYERS = {
    "actnorm": lambda: ActNorm(C),
    "1x1 convolution": lambda: InvertibleConv(C, stream(1)),  # its permutation is not its own inverse
    "coupling": lambda: Coupling(C, 6, stream(0)),
    "coupling of odd channels": lambda: Coupling(3, 6, stream(0)),
    "step": lambda: Step(C, 6, stream(0)),
    "split": lambda: Whole(C),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name):
    """A layer away from its start, where it might be the identity."""
    layer, g = LAYERS[name](), stream(3)
    for tensor in layer.parameters():
        tensor.data += 0.3 * torch.randn(tensor.shape, generator=g, dtype=F64)
    return layer


def images(name, n=5):
    return torch.randn(n, 3 if "odd" in name else C, *SIDES, generator=stream(1), dtype=F64)


@every_layer
def test_the_inverse_brings_every_image_back(name):
    layer, x = made(name), images(name)
    y, _ = layer(x)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(layer.inverse(y), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer(layer.inverse(x))[0], x, rtol=0, atol=1e-10)


@every_layer
def test_the_log_determinant_is_that_of_the_jacobian_of_each_image(name):
    layer, x = made(name), images(name)
    log_det = layer(x)[1]
    assert log_det.shape == (len(x),)
    for image, wanted in zip(x, log_det, strict=True):
        jac = torch.func.jacrev(lambda y: layer(y[None])[0].flatten())(image).reshape(image.numel(), -1)
        torch.testing.assert_close(torch.linalg.slogdet(jac)[1], wanted, rtol=0, atol=1e-10)


@every_layer
def test_gradients_reach_every_parameter(name):
    layer, x = made(name), images(name)
    y, log_det = layer(x)
    (y.square().sum() - log_det.sum()).backward()
    for title, tensor in layer.named_parameters():
        assert bool((tensor.grad != 0).any()), title


def test_actnorm_starts_with_mean_zero_and_unit_variance_in_each_channel():
    x = 3 * images("actnorm", 50) * torch.arange(1, C + 1)[:, None, None] + 7
    layer = ActNorm(C)
    y = layer.initialise(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(C, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(C, dtype=F64), rtol=0, atol=1e-12)
    assert torch.equal(layer(x)[0], y)


def test_actnorm_only_moves_a_channel_that_never_varies():
    layer, x = ActNorm(C), images("actnorm")
    x[:, 1] = 5.0
    assert not layer.initialise(x)[:, 1].any() and not layer.log_scale[1].any()


def test_the_1x1_convolution_starts_as_a_rotation_and_multiplies_every_pixel_by_its_matrix():
    layer = InvertibleConv(6, stream(4))
    W, eye = layer.matrix(), torch.eye(6, dtype=F64)
    torch.testing.assert_close(W @ W.T, eye, rtol=0, atol=1e-12)
    assert (W - eye).abs().max() > 0.1
    assert not torch.equal(made("1x1 convolution").permutation, made("1x1 convolution").permutation.T)
    x = torch.randn(3, 6, *SIDES, generator=stream(5), dtype=F64)
    y, log_det = layer(x)
    torch.testing.assert_close(y, torch.einsum("oc,nchw->nohw", W, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)


def test_all_entries_of_the_1x1_convolution_are_free_but_its_permutation_and_signs():
    layer = InvertibleConv(5, stream(4))
    assert sum(p.numel() for p in layer.parameters()) == 25
    held = Matrix(layer)
    matrix = lambda p: torch.func.functional_call(held, {"of.triangles": p}, ())  # noqa: E731
    jac = torch.func.jacrev(matrix)(layer.triangles.detach())
    assert int(torch.linalg.matrix_rank(jac.reshape(25, 25))) == 25


def test_a_coupling_starts_as_the_identity_and_leaves_one_half_alone():
    x = images("coupling")
    fresh = Coupling(C, 6, stream(0))
    assert torch.equal(fresh(x)[0], x) and not fresh(x)[1].any()
    assert torch.equal(made("coupling")(x)[0][:, C // 2 :], x[:, C // 2 :])


def test_no_coupling_scales_beyond_its_bound():
    layer = made("coupling")
    layer.last.weight.data *= 1e4
    x = images("coupling")
    per_value = layer(x)[1] / (x[0].numel() // 2)
    assert bool((per_value.abs() <= LOG_SCALE).all()) and bool((layer(x)[1] != 0).any())
    torch.testing.assert_close(bounded(torch.tensor(1e-4, dtype=F64)), torch.tensor(1e-4, dtype=F64), rtol=1e-6, atol=0)


def test_a_split_whitens_what_leaves_by_what_stays():
    # with these biases the half that leaves is N(2, e^.5) whatever stays
    split = Split(2)
    split.prior.bias.data.copy_(torch.tensor([2.0, 0.5]))
    kept, latent, log_det = split(torch.ones(1, 2, 1, 1, dtype=F64))
    scale = float(bounded(torch.tensor(0.5)))
    assert float(kept) == 1.0
    assert latent.item() == pytest.approx(-math.exp(-scale)) and log_det.item() == pytest.approx(-scale)


def test_first_values_come_from_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b = convolution(3, 5, 3, stream(7)), convolution(3, 5, 3, stream(7))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.weight, b.weight) and not torch.equal(a.weight, convolution(3, 5, 3, stream(8)).weight)
    assert float(a.weight.detach().abs().max()) <= 27**-0.5
