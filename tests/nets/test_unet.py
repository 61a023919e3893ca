"""The diffusion U-Net: counts, derivatives, time inputs and initialisation."""

import copy

import pytest
import torch
from torch.func import functional_call, jvp, stack_module_state, vmap

from psmlib.machine.streams import stream
from psmlib.nets.time_inputs import TIME_INPUTS, embedded_time
from psmlib.nets.unet import Attention, RMSNorm, UNet, small
from psmlib.process import EDM, RVE, VE, VP, OTFlow, SubVP

F64 = torch.float64
VARIANTS = [
    {}, {"attention": "full"}, {"attention": ("linear", None), "middle": None}, {"norm": "rms", "blocks": 1},
    {"dim_mults": (1, 2, 3), "blocks": 3},
]  # fmt: skip


def tiny(**settings) -> UNet:
    given = {"dim": 8, "dim_mults": (1, 2), "channels": 2, "heads": 2, "head_dim": 4, "groups": 4, "dtype": F64}
    return UNet(**{**given, **settings})


def images(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 35_711_107),  # the package's releases 0.32.0 to 1.7.7, November 2022 to June 2023
        ({"attention": ("linear", "linear", "linear", "full")}, 35_710_339),  # 1.8.0, June 2023
        # 2.x learns four more keys and values for each of nine attentions of 4 heads of 32: 35,711,491 in all
        ({"attention": ("linear", "linear", "linear", "full"), "norm": "rms"}, 35_711_491 - 9 * 2 * 4 * 4 * 32),
        ({"channels": 1}, 35_711_107 - 2 * (49 * 64 + 64 + 1)),
    ],
)
def test_the_released_settings_have_the_released_counts(settings, count):
    assert UNet(**settings).parameter_count == count


def test_the_output_is_the_released_one():
    """The figures are those of denoising_diffusion_pytorch 1.7.2 and 1.7.3, given the same weights."""
    net = UNet(dim=8, dtype=F64)
    x = torch.linspace(-2, 2, 2 * 3 * 8 * 16, dtype=F64).reshape(2, 3, 8, 16).sin() * 3
    out = net(x, torch.zeros(2, dtype=F64)).detach()
    found = torch.stack([out[0, 0, 0, 0], out[0, 1, 3, 7], out[1, 2, 7, 15], out.square().sum()])
    want = [0.015956370775201477, 0.36447497843322074, 0.20363033564187805, 137.9893125475709]
    assert torch.allclose(found, torch.tensor(want, dtype=F64), rtol=1e-9)


def test_a_small_network_is_counted_by_hand():
    conv = lambda a, b, k: a * b * k * k + b  # noqa: E731
    block = lambda a, b: 33 * 2 * b + conv(a, b, 3) + conv(b, b, 3) + 4 * b + (a != b) * conv(a, b, 1)  # noqa: E731
    attend = lambda c, linear: c + c * 24 + conv(8, c, 1) + linear * c  # noqa: E731
    count = conv(2, 8, 7) + 9 * 32 + 33 * 32
    count += 2 * block(8, 8) + attend(8, True) + conv(8, 8, 2) + 2 * block(8, 8) + attend(8, True) + conv(8, 16, 3)
    count += 2 * block(16, 16) + attend(16, False)
    count += 2 * block(24, 16) + attend(16, True) + conv(16, 8, 3) + 2 * block(16, 8) + attend(8, True) + conv(8, 8, 3)
    assert tiny().parameter_count == count + block(16, 8) + conv(8, 2, 1)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_shapes_of_any_size_and_number(settings):
    net = tiny(**settings)
    for n, h, w in ((3, 8, 8), (1, 12, 20), (2, 7, 9), (0, 8, 8), (2, 1, 1), (2, 28, 28)):
        out = net(images(n, 2, h, w), torch.zeros(n, dtype=F64))
        assert out.shape == (n, 2, h, w) and out.dtype == F64 and out.isfinite().all()


def test_the_rim_is_of_zeros_and_even():
    net, x, t = tiny(dim_mults=(1, 2, 2)), images(2, 2, 6, 9), torch.tensor([0.1, 2.0], dtype=F64)
    padded = torch.zeros(2, 2, 8, 12, dtype=F64)
    padded[:, :, 1:7, 1:10] = x
    assert torch.equal(net(x, t), net(padded, t)[:, :, 1:7, 1:10])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_jvp_against_finite_differences(settings):
    net, x, t = tiny(**settings), images(3, 2, 6, 8), torch.tensor([0.1, 1.0, 4.0], dtype=F64)
    u, s, h = images(3, 2, 6, 8, seed=1), torch.tensor([1.0, -2.0, 0.5], dtype=F64), 1e-5
    value, slope = (y.detach() for y in jvp(net, (x, t), (u, s)))
    difference = (net(x + h * u, t + h * s) - net(x - h * u, t - h * s)) / (2 * h)
    assert torch.allclose(value, net(x, t), atol=1e-12)
    assert torch.allclose(slope, difference, rtol=1e-6, atol=1e-8 * float(slope.abs().max()))
    reverse = torch.autograd.functional.vjp(lambda y: net(y, t), x, u)[1]
    forward = jvp(lambda y: net(y, t), (x,), (u,))[1]
    assert torch.allclose((forward * u).sum(), (reverse * u).sum(), rtol=1e-10)


def test_the_gradient_reaches_every_parameter():
    for settings in VARIANTS:
        net = tiny(**settings)
        net(images(3, 2, 8, 8), torch.tensor([0.1, 1.0, 4.0], dtype=F64)).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 1e-9 for p in net.parameters()), settings


def test_images_do_not_meet_and_one_time_serves_all():
    net, x, t = tiny(), images(4, 2, 8, 8), torch.tensor([0.0, 0.1, 1.0, 4.0], dtype=F64)
    rows = torch.cat([net(x[i : i + 1], t[i]) for i in range(4)])
    assert torch.allclose(net(x, t), rows, atol=1e-13)
    assert torch.equal(net(x, t[2]), net(x, t[2].expand(4)))
    assert torch.equal(net(x, torch.tensor(1)), net(x, t[2])), "a whole number is a time too"
    assert not torch.allclose(net(x, t), net(x, t + 0.1), atol=1e-3)
    finer, faster = tiny(time_scale=3.0), tiny()
    assert torch.allclose(finer(x, t), faster(x, 3 * t), atol=1e-13)


def test_the_time_is_told_in_sines_from_one_radian_to_a_ten_thousandth():
    waves = tiny()._waves(torch.tensor([0.0, 0.7], dtype=F64))
    assert torch.equal(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4, dtype=F64))
    phase = 0.7 * torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4], dtype=F64)
    assert torch.allclose(waves[1], torch.cat([phase.sin(), phase.cos()]), rtol=1e-12)


@pytest.mark.parametrize("process", [VP(0.0, 10.0), VP(), SubVP(), VE(), RVE(), OTFlow(), EDM()], ids=str)
def test_clocks(process):
    t = torch.linspace(0, process.T, 7, dtype=F64)
    assert torch.equal(embedded_time("t", t, process), t)
    noise = embedded_time("log_snr", t, process)
    assert noise.isfinite().all() and (noise.diff() > 0).all(), "rises with the noise, and is finite at both ends"
    assert torch.allclose(noise[3].exp(), (process.sigma(t[3]) / process.alpha(t[3])) ** 2)
    if isinstance(process, VP):
        B = embedded_time("integral", t, process)
        assert torch.allclose(B, -2 * process.alpha(t).log(), atol=1e-14)
        assert torch.equal(tiny(time_input="integral").time_of(t, process), B)
    else:
        with pytest.raises(ValueError, match="has no integral of beta: use time_input='log_snr'"):
            embedded_time("integral", t, process)


def test_the_released_clock_is_c_t_squared():
    assert float(embedded_time("integral", 0.3, VP(0.0, 12.0))) == pytest.approx(6 * 0.3**2)
    assert set(TIME_INPUTS) == {"log_snr", "t", "integral"}


def test_the_start_depends_on_the_seed_alone():
    before = torch.random.get_rng_state()
    one, same, other = tiny(seed=3), tiny(seed=stream(3)), tiny(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's global generator is left alone"
    single = tiny(seed=3, dtype=torch.float32)
    for (name, p), q, r, s in zip(
        one.named_parameters(), same.parameters(), other.parameters(), single.parameters(), strict=True
    ):
        assert torch.equal(p, q) and torch.equal(p.float(), s) and s.dtype == torch.float32
        norm = p.dim() == 1 and ("norm" in name or "after" in name)
        assert norm or not torch.equal(p, r)
        assert not norm or bool((p == float(name.endswith("weight"))).all())
    weight, bias = one.last.weight.detach(), one.first.bias.detach()
    assert float(weight.abs().max()) <= 8**-0.5 and float(bias.abs().max()) <= 98**-0.5
    big = UNet(dim=32, dim_mults=(1,), channels=1, groups=8).down[0].move.weight
    assert float(big.std()) == pytest.approx((3 * 9 * 32) ** -0.5, rel=0.05), "uniform within 1 / sqrt(fan in)"


def test_settings_make_the_same_network_again():
    net = tiny(attention=(None, "full"), time_input="t", zero_last=True, seed=5)
    again = UNet(**net.settings, seed=5, dtype=F64)
    assert again.settings == net.settings and again.time_input == "t"
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    assert torch.equal(net(images(2, 2, 8, 8), torch.ones(2)), torch.zeros(2, 2, 8, 8, dtype=F64))


def test_two_stacked_networks_are_two_networks():
    nets, x, t = [tiny(seed=k) for k in (0, 1)], images(2, 3, 2, 8, 8), torch.rand(2, 3, dtype=F64)
    params, buffers = stack_module_state(nets)
    shell = copy.deepcopy(nets[0]).to("meta")

    def call(p, b, x, t):
        return functional_call(shell, (p, b), (x, t))

    assert torch.allclose(
        vmap(call)(params, buffers, x, t),
        torch.stack([net(a, b) for net, a, b in zip(nets, x, t, strict=True)]),
        atol=1e-12,
    )
    u = images(2, 3, 2, 8, 8, seed=2)
    slopes = vmap(lambda p, b, x, t, u: jvp(lambda y: call(p, b, y, t), (x,), (u,))[1])(params, buffers, x, t, u)
    for k, net in enumerate(nets):
        assert torch.allclose(slopes[k], jvp(lambda y, k=k, net=net: net(y, t[k]), (x[k],), (u[k],))[1], atol=1e-11)


def test_layouts_and_dtypes_agree():
    x, t = images(3, 2, 8, 8), torch.rand(3, dtype=F64)
    want, last = tiny()(x, t), tiny(channels_last=True)
    assert last.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last(x, t), want, atol=1e-12)
    single = tiny(dtype=torch.float32)
    assert torch.allclose(single(x.float(), t).double(), want, atol=1e-5), "the times may stay float64"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(single(x.float(), t).double(), want, atol=0.1)


def test_dropout_works_in_training_only():
    net, x, t = tiny(dropout=0.5), images(3, 2, 8, 8), torch.rand(3, dtype=F64)
    torch.manual_seed(0)
    assert not torch.allclose(net(x, t), net(x, t))
    assert torch.equal(net.eval()(x, t), tiny()(x, t))


def test_attention_is_what_its_formula_says():
    x = images(1, 6, 2, 3)
    for kind in ("linear", "full"):
        net = Attention(6, kind, 1, 5).double()
        q, k, v = net.qkv(net.norm(x))[0].reshape(3, 5, 6)
        want = torch.zeros(5, 6, dtype=F64)
        for i in range(6):
            for j in range(6):
                if kind == "full":
                    weight = (q[:, i] @ k / 5**0.5).exp()
                    want[:, i] += v[:, j] * weight[j] / weight.sum()
                else:
                    share = k[:, j].exp() / k.exp().sum(1)
                    want[:, i] += v[:, j] / 6 / 5**0.5 * (share @ q[:, i].softmax(0))
        out = net.after(net.out(want.reshape(1, 5, 2, 3)))
        assert torch.allclose(net(x), x + out, atol=1e-12)


def test_rms_norm():
    x, norm = images(2, 5, 3, 3), RMSNorm(5).double()
    assert torch.allclose(norm(x), torch.nn.functional.normalize(x, dim=1) * 5**0.5, atol=1e-10)
    assert jvp(norm, (torch.zeros_like(x),), (x,))[1].isfinite().all()


def test_the_predicted_memory_holds_what_the_backward_pass_keeps():
    net, kept = small(dtype=F64), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(images(8, 1, 8, 8), torch.rand(8, dtype=F64))
    saved = sum(size for where, size in kept.items() if where not in own)
    assert out.shape == (8, 1, 8, 8)
    own = sum(p.nbytes for p in net.parameters())
    train, test = net.memory(8, (8, 8)), net.memory(8, (8, 8), training=False)
    assert 3 * own + saved < train < 4 * own + 2 * saved
    assert own < test < own + saved / 2
    assert 1.8 < (net.memory(64, (8, 8)) - 4 * own) / (net.memory(32, (8, 8)) - 4 * own) < 2.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 7}, "dim must be an even number"), ({"dim": 2, "groups": 1}, "dim must be an even number"),
        ({"dim_mults": ()}, "dim_mults must be positive"), ({"dim_mults": (1, 0)}, "dim_mults must be positive"),
        ({"groups": 3}, "groups=3 does not divide the 8 channels"), ({"blocks": 0}, "blocks must be a positive"),
        ({"norm": "batch"}, "unknown norm 'batch': use one of group, rms"), ({"dropout": 1.0}, r"must lie in \[0, 1\)"),
        ({"attention": "none"}, "unknown attention 'none'"), ({"middle": "half"}, "unknown middle 'half'"),
        ({"attention": ("full",)}, "attention names 1 levels but dim_mults has 2"),
        ({"time_input": "T"}, "unknown time_input 'T'"), ({"channels": 1.5}, "channels must be a positive"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as found:
        tiny(**settings)
    assert "\n" not in str(found.value)


def test_inputs_that_do_not_fit_are_refused_in_one_sentence():
    net, x, t = tiny(pad=False), images(3, 2, 8, 8), torch.rand(3, dtype=F64)
    for a, b, message in (
        (x[:, :1], t, r"takes images of shape \(n, 2, H, W\), got \(3, 1, 8, 8\)"), (x[0], t, "takes images of shape"),
        (x[..., :0], t, "takes images"), (x.float(), t, "holds torch.float64 but the images are torch.float32"),
        (x.float().to("meta"), t, "is on cpu but the images are on meta"), (x[..., :7], t, "8x7 does not allow"),
        (x, t[:2], r"one time an image: 3 images but times of shape \(2,\)"), (x, t[:, None], "one time an image"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as found:
            net(a, b)
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match="unknown time_input"):
        embedded_time("sigma", 0.5, VP())
