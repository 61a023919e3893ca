"""The U-Net of Ronneberger: counts, derivatives, and the statistics of its batch norm."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, stack_module_state, vmap

from psmlib.machine.streams import stream
from psmlib.nets.ronneberger import BatchNorm, Ronneberger, small

F64 = torch.float64


def tiny(**settings) -> Ronneberger:
    return Ronneberger(**{"a": 4, "levels": 3, "channels": 2, "dtype": F64, **settings})


def images(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def trained(net: Ronneberger) -> Ronneberger:
    """The network in evaluation mode, after it has seen a few batches, so that its running statistics are its own."""
    for seed in range(5):
        net.train()(1 + 2 * images(16, 2, 8, 8, seed=seed))
    return net.eval()


def test_the_released_settings_and_small_ones_are_counted():
    # two levels by hand: 3x3 convolutions, two numbers a channel of each batch norm, 2x2 up, 1x1 out
    by_hand = (9 * 2 * 4 + 9 * 16 + 16) + (9 * 32 + 9 * 64 + 32) + (4 * 32 + 4) + (9 * 32 + 9 * 16 + 16) + 10
    assert tiny(levels=2, bias=False).parameter_count == by_hand
    assert tiny(levels=2).parameter_count == by_hand + 2 * (4 + 8 + 4)
    assert Ronneberger().parameter_count == 31_043_651
    assert Ronneberger(bias=False).parameter_count == 31_037_763
    assert [block.convs[1].out_channels for block in Ronneberger(a=2).down] == [2, 4, 8, 16, 32]


def reference(net: Ronneberger, x: torch.Tensor) -> torch.Tensor:
    """The network from torch's own layers, in the order of Ronneberger et al., Figure 1."""

    def double(block, h):
        for conv, norm in zip(block.convs, block.norms, strict=True):
            layer = nn.BatchNorm2d(len(norm.weight)).double()
            layer.load_state_dict({**norm.state_dict(), "num_batches_tracked": torch.tensor(0)})
            h = nn.ELU()(layer.train(net.training)(conv(h)))
        return h

    one = double(net.down[0], x)
    two = double(net.down[1], nn.MaxPool2d(2)(one))
    three = double(net.down[2], nn.MaxPool2d(2)(two))
    two = double(net.up[0], torch.cat([two, net.enlarge[0](three)], 1))
    return net.last(double(net.up[1], torch.cat([one, net.enlarge[1](two)], 1)))


def test_the_layers_are_those_of_the_paper():
    net, x = trained(tiny()), images(3, 2, 8, 12)
    assert torch.allclose(net(x), reference(net, x), atol=1e-12)
    assert torch.allclose(net.train()(x), reference(net, x), atol=1e-12)


def test_shapes_of_any_size_and_number():
    for n, h, w in ((3, 8, 8), (1, 12, 20), (2, 7, 9), (0, 8, 8), (1, 1, 1), (2, 28, 28)):
        out = tiny().eval()(images(n, 2, h, w))
        assert out.shape == (n, 2, h, w) and out.dtype == F64 and out.isfinite().all()
    assert tiny(levels=1).eval()(images(2, 2, 5, 7)).shape == (2, 2, 5, 7)


def test_the_rim_is_of_zeros_and_even():
    net, x = trained(tiny()), images(2, 2, 6, 9)
    padded = torch.zeros(2, 2, 8, 12, dtype=F64)
    padded[:, :, 1:7, 1:10] = x
    assert torch.equal(net(x), net(padded)[:, :, 1:7, 1:10])


@pytest.mark.parametrize("settings", [{}, {"batch_at_test": True}, {"levels": 2}], ids=str)
def test_jvp_against_finite_differences(settings):
    net, x, u, h = trained(tiny(**settings)), images(3, 2, 8, 8), images(3, 2, 8, 8, seed=1), 1e-6
    value, slope = (y.detach() for y in jvp(net, (x,), (u,)))
    difference = (net(x + h * u) - net(x - h * u)) / (2 * h)
    assert torch.allclose(value, net(x), atol=1e-12)
    assert torch.allclose(slope, difference, rtol=1e-6, atol=1e-8 * float(slope.abs().max()))
    reverse = torch.autograd.functional.vjp(net, x, u)[1]
    assert torch.allclose((slope * u).sum(), (reverse * u).sum(), rtol=1e-10)


def test_the_gradient_reaches_every_parameter():
    for training in (True, False):
        net = trained(tiny(bias=False)).train(training)
        net(images(6, 2, 8, 8)).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 1e-9 for p in net.parameters())
    net = tiny()  # the bias before a batch norm is idle: the reason for leaving it out
    net(images(6, 2, 8, 8)).square().sum().backward()
    idle = {name for name, p in net.named_parameters() if float(p.grad.abs().max()) < 1e-9}
    assert idle == {name for name, _ in net.named_parameters() if "convs" in name and name.endswith("bias")}


def test_an_image_is_judged_alone_in_evaluation_mode():
    net, x = trained(tiny()), images(6, 2, 8, 8)
    assert torch.allclose(net(x), torch.cat([net(x[i : i + 1]) for i in range(6)]), atol=1e-13)
    u = torch.zeros_like(x)
    u[0] = images(2, 8, 8, seed=1)
    assert float(jvp(net, (x,), (u,))[1][1:].abs().max()) == 0


def test_the_released_mode_judges_an_image_by_its_neighbours():
    net, x = trained(tiny()), images(6, 2, 8, 8)
    calm, state = net(x), copy.deepcopy(net.state_dict())
    net.batch_at_test = True
    assert torch.allclose(net(x), copy.deepcopy(net).train()(x), atol=1e-13), "what a network never told eval() does"
    assert float((net(x)[:3] - net(x[:3])).abs().max()) > 1e-2 and float((net(x) - calm).abs().max()) > 1e-2
    u = torch.zeros_like(x)
    u[0] = images(2, 8, 8, seed=1)
    assert float(jvp(net, (x,), (u,))[1][1:].abs().max()) > 1e-3, "the Jacobian couples the images"
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()), "and the running statistics rest"


def test_batch_norm_keeps_running_means():
    norm, layer = BatchNorm(2).double(), nn.BatchNorm2d(2).double()
    for seed in range(3):
        x = images(4, 2, 3, 3, seed=seed)
        assert torch.allclose(norm(x), layer(x), atol=1e-14)
    assert torch.allclose(norm.running_mean, layer.running_mean) and torch.allclose(norm.running_var, layer.running_var)
    assert torch.allclose(norm.eval()(x), layer.eval()(x), atol=1e-14)
    both = images(4, 2, 3, 3, seed=9)
    flat = both.transpose(0, 1).flatten(1)
    z = (both - flat.mean(1)[:, None, None]) / (flat.var(1, correction=0) + 1e-5).sqrt()[:, None, None]
    assert torch.allclose(norm(both, batch_at_test=True), z, atol=1e-12)


def test_the_start_depends_on_the_seed_alone():
    before = torch.random.get_rng_state()
    one, same, other, single = tiny(seed=3), tiny(seed=stream(3)), tiny(seed=4), tiny(seed=3, dtype=torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's global generator is left alone"
    for (name, p), q, r, s in zip(
        one.named_parameters(), same.parameters(), other.parameters(), single.parameters(), strict=True
    ):
        assert torch.equal(p, q) and torch.equal(p.float(), s)
        assert bool((p == float(name.endswith("weight"))).all()) if "norms" in name else not torch.equal(p, r)
    assert all(bool((b == float("var" in name)).all()) for name, b in one.named_buffers())
    weight = Ronneberger(a=16, levels=2).enlarge[0].weight
    assert float(weight.std()) == pytest.approx((3 * 4 * 16) ** -0.5, rel=0.05), "as torch starts its own layer"
    again = Ronneberger(**tiny(zero_last=True, batch_at_test=True).settings, dtype=F64)
    assert again.batch_at_test and torch.equal(again(images(2, 2, 8, 8)), torch.zeros(2, 2, 8, 8, dtype=F64))


@pytest.mark.parametrize("training", [True, False])
def test_two_stacked_networks_are_two_networks(training):
    nets, x = [trained(tiny(seed=k)).train(training) for k in (0, 1)], images(2, 3, 2, 8, 8)
    params, buffers = stack_module_state(nets)
    shell = copy.deepcopy(nets[0]).to("meta")
    out = vmap(lambda p, b, x: functional_call(shell, (p, b), (x,)))(params, buffers, x)
    assert torch.allclose(out, torch.stack([net(a) for net, a in zip(nets, x, strict=True)]), atol=1e-12)
    for name, stacked in buffers.items():  # in training the stacked running statistics move as the single ones do
        assert torch.allclose(stacked, torch.stack([dict(net.named_buffers())[name] for net in nets]), atol=1e-13)
    if not training:
        u = images(2, 3, 2, 8, 8, seed=2)
        call = lambda p, b, x, u: jvp(lambda y: functional_call(shell, (p, b), (y,)), (x,), (u,))[1]  # noqa: E731
        slopes = vmap(call)(params, buffers, x, u)
        single = [jvp(net, (a,), (b,))[1] for net, a, b in zip(nets, x, u, strict=True)]
        assert torch.allclose(slopes, torch.stack(single), atol=1e-11)


def test_layouts_and_dtypes_agree():
    x, net = images(3, 2, 8, 8), trained(tiny())
    last, single = tiny(channels_last=True).eval(), tiny(dtype=torch.float32).eval()
    assert last.last.weight.is_contiguous(memory_format=torch.channels_last)
    last.load_state_dict(net.state_dict())
    single.load_state_dict(net.state_dict())
    assert torch.allclose(last(x), net(x), atol=1e-12)
    assert torch.allclose(single(x.float()).double(), net(x), atol=1e-4)


def test_the_predicted_memory_holds_what_the_backward_pass_keeps():
    net, kept = small(dtype=F64), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    state = copy.deepcopy(net.state_dict())
    own = sum(p.nbytes for p in net.parameters())
    train, test = net.memory(32, (8, 8)), net.eval().memory(32, (8, 8), training=False)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    mine = {tensor.data_ptr() for tensor in net.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net.train()(images(32, 1, 8, 8))
    saved = sum(size for where, size in kept.items() if where not in mine)
    assert out.shape == (32, 1, 8, 8) and 3 * own + saved < train < 4.2 * own + 2 * saved
    assert own < test < 1.1 * own + saved / 2


def test_what_does_not_fit_is_refused_in_one_sentence():
    net, x = tiny(pad=False).eval(), images(3, 2, 8, 8)
    for call, message in (
        (lambda: tiny(a=0), "Ronneberger's a must be a positive whole number, got 0"),
        (lambda: tiny(levels=2.0), "levels must be a positive whole number"),
        (lambda: net(x[:, :1]), r"takes images of shape \(n, 2, H, W\), got \(3, 1, 8, 8\)"),
        (lambda: net(x[0]), "takes images of shape"), (lambda: net(x.half()), "the images are torch.float16"),
        (lambda: net(x.to("meta")), "is on cpu but the images are on meta"),
        (lambda: net(x[..., :6]), "halves its images to a 4th, which 8x6 does not allow: use fewer levels, or pad"),
        (lambda: tiny()(x[:1, :, :4, :4]), "cannot normalise by the statistics of a single pixel"),
        (lambda: tiny(batch_at_test=True).eval()(x[:1, :, :2, :2]), "the statistics of a single pixel"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
