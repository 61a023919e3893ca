"""Glow: inverse, log determinant, normalisation of the density, and training on a known law."""

import math

import pytest
import torch

from psmlib.machine.streams import stream
from psmlib.nets.glow import Glow
from psmlib.nets.glow_layers import ActNorm

F64 = torch.float64


def stirred(shape, seed=0, size=0.1, **settings):
    """A Glow in float64 away from its start, where couplings and priors do nothing."""
    flow, g = Glow(shape, seed=seed, dtype=F64, **settings), stream(11)
    for tensor in flow.parameters():
        tensor.data += size * torch.randn(tensor.shape, generator=g, dtype=F64)
    return flow


def images(n, shape, seed=1):
    return torch.randn(n, *shape, generator=stream(seed), dtype=F64)


@pytest.mark.parametrize(
    "shape, levels", [((1, 8, 8), 2), ((3, 4, 4), 1), ((1, 28, 28), 2), ((3, 32, 32), 3), ((2, 4, 12), 2)]
)
@torch.no_grad()
def test_decode_undoes_encode_and_the_other_way_round(shape, levels):
    flow, x = stirred(shape, levels=levels, steps=2, hidden=8, size=0.05), images(3, shape)
    latents, log_det = flow.encode(x)
    assert [tuple(z.shape[1:]) for z in latents] == flow.latent_shapes and log_det.shape == (3,)
    assert sum(z[0].numel() for z in latents) == math.prod(shape)
    torch.testing.assert_close(flow.decode(latents), x, rtol=0, atol=1e-10)
    fresh = [torch.randn(z.shape, generator=stream(4), dtype=F64) for z in latents]
    for z, back in zip(fresh, flow.encode(flow.decode(fresh))[0], strict=True):
        torch.testing.assert_close(back, z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape, levels", [((1, 4, 4), 2), ((2, 2, 4), 1)])
def test_the_log_determinant_is_that_of_the_whole_jacobian(shape, levels):
    flow, x = stirred(shape, levels=levels, steps=2, hidden=8), images(3, shape)
    log_det = flow.encode(x)[1]
    for image, wanted in zip(x, log_det, strict=True):
        jac = torch.func.jacrev(lambda y: torch.cat([z.flatten() for z in flow.encode(y[None])[0]]))(image)
        torch.testing.assert_close(torch.linalg.slogdet(jac.flatten(1))[1], wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_density_sums_to_one_on_a_grid_and_against_a_wide_proposal():
    flow = stirred((1, 2, 2), levels=1, steps=2, hidden=8, size=0.2)
    axis = torch.linspace(-7, 7, 25, dtype=F64)
    grid = torch.cartesian_prod(axis, axis, axis, axis).view(-1, 1, 2, 2)
    total = sum(float(flow.log_prob(x).exp().sum()) for x in grid.split(50000)) * float(axis[1] - axis[0]) ** 4
    assert total == pytest.approx(1, abs=0.01)
    x = 2 * images(40000, (1, 2, 2))
    log_proposal = -0.5 * (x / 2).square().flatten(1).sum(1) - 2 * math.log(2 * math.pi) - 4 * math.log(2)
    ratio = (flow.log_prob(x) - log_proposal).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / 200)


@torch.no_grad()
def test_samples_follow_the_density():
    # E_p[q(x) / p(x)] = 1 for any q that p covers
    flow = stirred((1, 2, 2), levels=1, steps=2, hidden=8, size=0.2)
    x = flow.sample(40000, stream(2))
    centre = x.mean(0)
    log_q = -0.5 * ((x - centre) / 0.6).square().flatten(1).sum(1) - 2 * math.log(2 * math.pi) - 4 * math.log(0.6)
    ratio = (log_q - flow.log_prob(x)).exp()
    assert float(ratio.std()) < 10
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / 200)


def test_the_entropy_of_samples_is_that_of_the_latents_and_the_stretch_of_the_decoder():
    flow = stirred((1, 4, 4), levels=2, steps=2, hidden=8)
    z = torch.randn(200, 16, generator=stream(3), dtype=F64)
    sizes = [math.prod(s) for s in flow.latent_shapes]

    def decode(flat):
        parts = [p.view(1, *s) for p, s in zip(flat.split(sizes), flow.latent_shapes, strict=True)]
        return flow.decode(parts).flatten()

    jac = torch.func.vmap(torch.func.jacfwd(decode))(z)
    entropy = 8 * math.log(2 * math.pi) + 0.5 * z.square().sum(1) + torch.linalg.slogdet(jac)[1]
    x = torch.func.vmap(decode)(z).view(-1, 1, 4, 4)
    torch.testing.assert_close(-flow.log_prob(x), entropy, rtol=0, atol=1e-9)


def test_temperature_scales_the_latents():
    flow = stirred((1, 4, 4))
    hot, half = (flow.encode(flow.sample(6, stream(5), t))[0] for t in (1.0, 0.5))
    for whole, z in zip(hot, half, strict=True):
        torch.testing.assert_close(z, 0.5 * whole, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_start_leaves_every_actnorm_with_mean_zero_and_unit_variance_per_channel():
    flow, x, seen = Glow((1, 8, 8), dtype=F64), 5 + 3 * images(200, (1, 8, 8)).cumsum(2), []
    flow.initialise(x)
    for layer in flow.modules():
        if isinstance(layer, ActNorm):
            layer.register_forward_hook(lambda layer, args, out: seen.append(out[0]))
    z = flow.encode(x)[0][-1]
    assert len(seen) == 9 and torch.equal(seen[-1], z)
    for y in seen:
        channels = y.shape[1]
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(channels, dtype=F64), rtol=0, atol=1e-10)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(channels, dtype=F64), rtol=0, atol=1e-10)


def test_gradients_reach_every_parameter():
    flow = stirred((1, 4, 4), hidden=6)
    flow.log_prob(images(20, (1, 4, 4))).sum().backward()
    for name, tensor in flow.named_parameters():
        assert bool((tensor.grad != 0).any()), name
    assert flow.parameter_count == sum(p.numel() for p in flow.parameters())


def test_the_first_values_depend_on_the_seed_alone_in_any_dtype():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b, other = Glow((1, 4, 4), seed=1, dtype=F64), Glow((1, 4, 4), seed=1, dtype=F64), Glow((1, 4, 4))
    single = Glow((1, 4, 4), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(p.float(), q) for p, q in zip(a.parameters(), single.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(single.parameters(), other.parameters(), strict=True))
    x = images(4, (1, 4, 4))
    assert a.log_prob(x).dtype == F64 and single.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(single.log_prob(x.float()).double(), a.log_prob(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.sample(4, stream(0)).double(), a.sample(4, stream(0)), rtol=1e-4, atol=1e-4)


def test_training_on_gaussian_images_comes_near_their_entropy():
    g = stream(6)
    # neighbouring pixels go together; without their correlations one pays another 16 nats
    mix = 0.3 * torch.randn(16, 16, generator=g, dtype=F64) / 4 + torch.eye(16, dtype=F64).cumsum(1) / 2
    entropy = 8 * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(mix)[1])
    apart = 8 * math.log(2 * math.pi * math.e) + 0.5 * float((mix @ mix.T).diagonal().log().sum())
    draw = lambda n: (torch.randn(n, 16, generator=g, dtype=F64) @ mix.T).view(n, 1, 4, 4)  # noqa: E731
    flow = Glow((1, 4, 4), levels=2, steps=3, hidden=16, dtype=F64)
    flow.initialise(draw(500))
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for i in range(250):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - i / 250)
        loss = -flow.log_prob(draw(128)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        cross = -flow.log_prob(draw(10000))
    error = float(cross.std()) / math.sqrt(10000)
    assert apart - entropy > 10
    assert entropy - 4 * error < float(cross.mean()) < entropy + 0.4


@pytest.mark.parametrize(
    "shape, settings, words",
    [
        ((1, 28, 28), {"levels": 3}, "halves its images 3 times, which 28x28 does not allow: use levels=2 or fewer"),
        ((1, 7, 8), {"levels": 1}, "which 7x8 does not allow: give the images even sides"),
        ((8, 8), {}, "takes images of shape .channels, height, width., got .8, 8."),
        ((1, 8, 8), {"steps": 0}, "steps must be a positive whole number, got 0"),
        ((1, 8, 8), {"hidden": 2.5}, "hidden must be a positive whole number, got 2.5"),
    ],
)
def test_what_cannot_be_built_is_refused(shape, settings, words):
    with pytest.raises(ValueError, match=words):
        Glow(shape, **settings)


def test_other_images_are_refused():
    flow = Glow((1, 4, 4))
    with pytest.raises(ValueError, match=r"images of shape \(n, 1, 4, 4\), got \(2, 1, 8, 8\)"):
        flow.log_prob(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="holds torch.float32 but the images are torch.float64"):
        flow.initialise(torch.zeros(2, 1, 4, 4, dtype=F64))
