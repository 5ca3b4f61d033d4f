"""What every network keeps (each entry of `MODELS`), and the parts of which they are made."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vimunet.models import MODELS, build_model
from vimunet.models.encoder_decoder import Canvas
from vimunet.models.umamba import AffineInstanceNorm, MambaLayer
from vimunet.models.unet import ConvBlock, Decoder, InstanceNorm, Upsample
from vimunet.models.vit import ViTEncoder, _relative
from vimunet.models.vmunet import FourWayScan

# Options that make a network small enough to be tested in a moment, by the start of its name.
SMALL = {
    "resunet": {"features": 8, "max_features": 64, "image_size": 64},
    "swin_unetr": {"features": 12},
    "umamba_": {"features": 8, "max_features": 64, "image_size": 64},
    "unet": {"features": 8},
    "unetr_": {"embed_dim": 32, "depth": 4, "num_heads": 2, "window": 2},
    "vim_": {"embed_dim": 32, "depth": 3},
    "vmunet": {"embed_dim": 16, "depths": [1, 1, 2, 1], "decoder_depths": [1, 1, 1, 1]},
}
EXTRA = [
    ("unet", {"upsampling": "bilinear", "depth": 3}),
    ("unetr_b", {"skip_connections": True}),
    ("unetr_b", {"upsampling": "bilinear", "global_layers": [3]}),
    ("umamba_bot", {"variant": "paper"}),
    ("umamba_bot", {"image_size": [32, 64]}),
    ("umamba_enc", {"residual": False, "last_skip": False}),
    ("vim_n", {"depth": 0}),
    ("vim_n", {"mixer": "convolution"}),
    ("vim_t", {"conv_stem": True, "features": (32, 16, 16, 8, 8)}),
    ("vim_t", {"skip_connections": True, "mixer": "convolution"}),
    ("vim_t", {"skip_connections": True}),
    ("vmunet", {"depths": [1, 2, 1, 1], "drop_path_rate": 0}),
]
PUBLISHED = [
    ("vim_t", {"variant": "paper", "image_size": 64}),
    ("vim_t", {"variant": "torch-em-0.7.5", "image_size": 64}),
    ("vim_t", {"variant": "torch-em-0.7.10", "image_size": 64}),
    ("unetr_b", {"variant": "paper", "image_size": 64, "resize_input": False}),
    ("umamba_enc", {"variant": "paper"}),
    ("unetr_b", {"variant": "paper", "image_size": 64, "skip_connections": True}),
]
NEEDS_MONAI = pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed")


def identify(case: object) -> str | None:
    return json.dumps(case) if isinstance(case, dict) else None


PLAIN = [pytest.param(m, {}, marks=[NEEDS_MONAI] * (m == "swin_unetr")) for m in MODELS]
OWN = pytest.mark.parametrize(("name", "options"), [*PLAIN, *EXTRA], ids=identify)
ALL = pytest.mark.parametrize(("name", "options"), [*PLAIN, *EXTRA, *PUBLISHED], ids=identify)


def build(name: str, in_channels: int = 1, out_channels: int = 2, **options) -> nn.Module:
    small = max((key for key in SMALL if name.startswith(key)), key=len, default=None)
    options = {**SMALL.get(small, {}), **options}
    return build_model(name, in_channels, out_channels, **options)


def sides(network: nn.Module, rows: int = 2, columns: int = 3) -> tuple[int, int]:
    """Height and width of a small image that the network takes: 32 and 48 for most of them."""
    side_y, side_x = (16 if stride == 1 else stride for stride in network.stride)
    return rows * side_y, columns * side_x


@OWN
@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_shape_of_the_output(name, options, in_channels):
    network = build(name, in_channels, 3, **options)
    for y, x in [sides(network), sides(network, 5, 1)]:
        assert network(torch.randn(2, in_channels, y, x)).shape == (2, 3, y, x)
    assert (network.in_channels, network.out_channels, network.max_size) == (in_channels, 3, None)


@ALL
def test_every_trainable_weight_gets_a_gradient(name, options):
    network = build(name, **options)
    network(torch.randn(2, 1, *sides(network))).square().mean().backward()
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # Some biases are taken away again by the norm behind them, weights never are.
            assert parameter.ndim == 1 or parameter.grad.any(), key
        else:
            assert any(part in f".{key}" for part in (".head.", ".neck.", ".seg_layers.")), key


@ALL
def test_eval_mode_is_deterministic_and_leaves_the_image_alone(name, options):
    network = build(name, **options).eval()
    image = torch.randn(1, 1, *sides(network))
    before = image.clone()
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
    assert torch.equal(image, before)


@ALL
def test_images_of_a_batch_do_not_see_each_other(name, options):
    network = build(name, **options).eval().double()  # norms magnify float32's rounding
    images = torch.randn(2, 1, *sides(network)).double()
    images[1] *= 5
    with torch.no_grad():
        single = torch.cat([network(images[:1]), network(images[1:])])
        torch.testing.assert_close(network(images), single, rtol=0, atol=1e-9)


@ALL
def test_config_builds_the_same_network(name, options):
    network = build(name, 3, 1, **options)
    config = json.loads(json.dumps(network.config))
    again = build_model(config["model"], **config["model_args"])
    again.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, *sides(network))
    with torch.no_grad():
        assert torch.equal(again.eval()(image), network.eval()(image))


@ALL
def test_float64_and_bfloat16_agree_with_float32(name, options):
    network = build(name, **options).eval()
    image = torch.randn(1, 1, *sides(network))
    with torch.no_grad():
        single = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(image)
        double = network.double()(image.double())
    assert double.dtype == torch.float64
    # Where a Mamba layer replaces its input, the norms behind it magnify its rounding.
    replaced = "paper" in options.values() or options.get("residual") is False
    magnified = name.startswith("umamba") and replaced
    atol = 0.05 if magnified else 1e-4
    torch.testing.assert_close(single.double(), double, rtol=0, atol=atol)
    # About 3 significant digits per operation; a wrong cast or a missing term is far outside.
    part = 0.25 if magnified else 0.01
    assert (low.double() - double).square().mean() < part * double.square().mean()


@OWN
def test_size_that_does_not_fit_is_explained(name, options):
    network = build(name, **options)
    stride, _ = network.stride
    message = (
        rf"Image size \({stride + 1}, {stride}\) must be divisible by {stride}\. "
        rf"Pad it to \({2 * stride}, {stride}\), or call `predict`, which pads for you\."
    )
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(1, 1, stride + 1, stride))
    with pytest.raises(ValueError, match=r"`image` must be \(b, 1, y, x\), got \(1, 2, 32, 32\)"):
        network(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match=r"`image` must be \(b, 1, y, x\), got \(1, 1, 32\)"):
        network(torch.zeros(1, 1, 32))
    with pytest.raises(ValueError, match=r"Image size \(0, 32\) must be divisible"):
        network(torch.zeros(1, 1, 0, 32))


@OWN
def test_smallest_image(name, options):
    network = build(name, **options)
    assert network(torch.randn(1, 1, *network.stride)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "transposed", "bilinear"),
    [
        ("unet", {}, 31_030_593, 28_941_633),
        ("unetr_b", {"variant": "paper"}, 104_107_585, 101_883_457),
        ("unetr_b", {"variant": "paper", "skip_connections": True}, 113_059_969, 108_107_905),
        ("unetr_l", {"variant": "paper"}, 324_418_881, 321_801_537),
        ("unetr_l", {"variant": "paper", "skip_connections": True}, 334_419_841, 328_288_129),
        ("unetr_h", {"variant": "paper"}, 654_870_593, 651_860_033),
        ("unetr_h", {"variant": "paper", "skip_connections": True}, 665_920_129, 658_608_769),
        ("vim_t", {}, 18_499_625, 17_160_233),
        ("vim_s", {}, 39_174_953, 37_540_649),
        ("vim_b", {}, 115_030_313, 112_806_185),
    ],
    ids=str,
)
def test_published_parameter_counts(name, options, transposed, bilinear):
    for count, upsampling in [(transposed, "transposed"), (bilinear, "bilinear")]:
        if name.startswith("vim"):
            variants = {"transposed": ["paper", "torch-em-0.7.5"], "bilinear": ["torch-em-0.7.10"]}
            choices = [{"variant": variant} for variant in variants[upsampling]]
        else:
            choices = [{"upsampling": upsampling}]
        for choice in choices:
            with torch.device("meta"):
                networks = [build_model(name, 1, maps, **options, **choice) for maps in (1, 2)]
            counts = [sum(p.numel() for p in network.parameters()) for network in networks]
            assert counts == [count, count + 65]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vim_t", {}, 17_618_178),
        ("vim_t", {"skip_connections": True}, 14_691_810),
        ("vim_n", {}, 2_802_146),
        ("vim_n", {"mixer": "convolution"}, 2_859_490),
        ("vim_n", {"depth": 0}, 1_723_874),
        ("vim_s", {}, 37_412_994),
        ("vim_b", {}, 111_507_330),
        ("unetr_b", {}, 100_534_914),
    ],
    ids=str,
)
def test_our_parameter_counts(name, options, count):
    with torch.device("meta"):
        network = build_model(name, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(("name", "options"), PUBLISHED[:4], ids=identify)
def test_published_networks_pad_with_zeros_and_crop(name, options):
    network = build(name, **options).eval()
    assert (network.stride, network.max_size) == ((1, 1), (64, 64))
    image = torch.randn(1, 1, 37, 50)
    padded = F.pad(image, (0, 14, 0, 27))
    with torch.no_grad():
        maps = network(image)
        assert torch.equal(maps, network(padded)[:, :, :37, :50])
        in_color = build(name, 3, **options).eval()
        in_color.load_state_dict(network.state_dict())
        assert torch.equal(maps, in_color(image.expand(1, 3, 37, 50)))
    with pytest.raises(ValueError, match=r"Image size \(20, 65\) must be at most \(64, 64\)"):
        network(torch.zeros(1, 1, 20, 65))


def test_canvas_scales_the_longest_side_and_back():
    canvas = Canvas(64, resize_input=True)
    image = torch.full((1, 1, 21, 42), 2.0)  # 21 / 42 * 64 = 32
    placed, shape = canvas.place(image)
    assert shape == (32, 64)
    assert torch.equal(placed[0, 0], F.pad(torch.full((32, 64), 2.0), (0, 0, 0, 32)))
    taken = canvas.take(torch.full((1, 2, 64, 64), -1.5), shape, (21, 42))
    torch.testing.assert_close(taken, torch.full((1, 2, 21, 42), -1.5))
    extreme = canvas.take(torch.full((1, 1, 64, 64), 100.0), shape, (21, 42))
    assert 15 < extreme.min() < extreme.max() + 1 < 17.5
    small, large = torch.randn(1, 1, 9, 9), torch.randn(1, 1, 200, 100)
    assert canvas.place(small)[1] == (64, 64)
    assert canvas.place(large)[1] == (64, 32)
    dot = torch.zeros(1, 1, 256, 256)
    dot[0, 0, 0, 0] = 1.0  # without smoothing first, every fourth pixel alone would be looked at
    assert canvas.place(dot)[0][0, 0, 0, 0] > 0


def test_sam_statistics():
    rgb = torch.tensor([123.675 + 58.395, 116.28, 103.53 - 2 * 57.375]).reshape(1, 3, 1, 1)
    placed, _ = Canvas(2, sam_stats=True).place(rgb)
    torch.testing.assert_close(placed[0, :, 0, 0], torch.tensor([1.0, 0.0, -2.0]))
    assert placed[0, :, 1, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vimunet",
            {},
            "Unknown model 'vimunet'. Known: resunet, swin_unetr, umamba_bot, umamba_enc, unet, un",
        ),
        (
            "unet",
            {"feature": 8},
            "Unknown option 'feature' of model 'unet'. Known: axes, depth, features",
        ),
        ("unet", {"upsampling": "nearest"}, "Unknown `upsampling` 'nearest'. Known: bilinear"),
        (
            "vim_t",
            {"variant": "v4"},
            "Unknown `variant` 'v4'. Known: default, paper, torch-em-0.7.5",
        ),
        ("unetr_b", {"variant": "sam"}, "Unknown `variant` 'sam'. Known: default, paper"),
        (
            "vim_t",
            {"variant": "paper", "skip_connections": True},
            "`skip_connections` must be False for variant='paper', got True",
        ),
        (
            "vim_t",
            {"variant": "torch-em-0.7.5", "conv_stem": True},
            "`conv_stem` must be False for variant='torch-em-0.7.5', got True",
        ),
        (
            "vim_t",
            {"variant": "paper", "mixer": "convolution"},
            "`mixer` must be 'mamba' for variant='paper', got 'convolution'",
        ),
        ("vim_n", {"mixer": "attention"}, "Unknown `mixer` 'attention'. Known: convolution, mamba"),
        (
            "vim_n",
            {"skip_connections": True},
            "`skip_connections` must be False with `conv_stem`, which has its own, got True",
        ),
        ("vim_n", {"image_size": 100}, "`image_size` must be a multiple of 16, got 100"),
        ("vim_n", {"image_size": -16}, "`image_size` must be a multiple of 16, got -16"),
        (
            "vim_n",
            {"features": (16, 8)},
            r"`features` must name 5 numbers of channels, got \[16, 8\]",
        ),
        ("vim_t", {"variant": "paper", "in_channels": 5}, "`in_channels` must be 1 or 3 for a pub"),
        (
            "umamba_enc",
            {"image_size": 7},
            "`image_size` must be one or two numbers from 8 up, got 7",
        ),
        ("umamba_bot", {"variant": "v2"}, "Unknown `variant` 'v2'. Known: default, paper"),
        ("resunet", {"mamba": "top"}, "Unknown `mamba` 'top'. Known: bottleneck, encoder, none"),
        ("vmunet", {"depths": [2, 2]}, r"`depths` must name 4 stages, got \[2, 2\]"),
        ("vmunet", {"embed_dim": 18}, "`embed_dim` must be a multiple of 4, got 18"),
        ("unetr_b", {"image_size": 100}, "`image_size` must be a multiple of 16, got 100"),
        ("unetr_b", {"num_heads": 5}, r"`embed_dim` must be a multiple of `num_heads` \(5\), got"),
        (
            "unetr_b",
            {"skip_connections": True, "global_layers": [1, 3]},
            r"`global_layers` must name at least 3 layers for skip connections, got \[1, 3\]",
        ),
    ],
)
def test_wrong_choices_are_explained(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize("tokens_are_channels", [False, True])
def test_mamba_layer_adds_to_the_map_or_replaces_it(tokens_are_channels):
    added = MambaLayer(12 if tokens_are_channels else 5, tokens_are_channels, residual=True)
    replaced = MambaLayer(12 if tokens_are_channels else 5, tokens_are_channels, residual=False)
    replaced.load_state_dict(added.state_dict())
    maps = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(added(maps), maps + replaced(maps))
    # Tokens see what comes before them only: the first pixel, or the first channel.
    changed = maps.clone()
    changed[:, 2, 1, 2] += 1
    same = (replaced(maps) == replaced(changed)).flatten(2)
    if tokens_are_channels:
        assert same[:, :2].all()
        assert not same[:, 2:].any()
    else:
        assert same[:, :, : 4 + 2].all()
        assert not same[:, :, 4 + 2 :].all(dim=1).any()


def test_mamba_layer_computes_in_float32_under_autocast():
    layer, maps = MambaLayer(8, False, residual=False), torch.randn(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(maps.bfloat16()).dtype == torch.bfloat16
    expected = layer(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(maps), expected)


def test_affine_instance_norm():
    norm, maps = AffineInstanceNorm(3), 5 * torch.randn(2, 3, 4, 6) + 2
    with torch.no_grad():
        norm.weight.uniform_(1, 2)
        norm.bias.normal_()
    expected = F.instance_norm(maps, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(maps), expected)
    assert norm(maps[:, :, :1, :1])[1].flatten().tolist() == norm.bias.tolist()


def test_vmunet_leaves_out_most_at_the_bottom():
    network = build_model("vmunet", depths=[1, 1, 2, 1], decoder_depths=[2, 1, 1, 1])
    down, up = (
        [block.drop_path.rate for stage in stages for block in stage.blocks]
        for stages in (network.vmunet.layers, network.vmunet.layers_up)
    )
    assert down == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert up == pytest.approx([0.2, 0.15, 0.1, 0.05, 0])


def test_vmunet_starts_with_the_steps_of_mamba():
    scan = FourWayScan(96)
    steps = F.softplus(scan.dt_projs_bias)
    assert steps.shape == (4, 192)
    assert 0.9e-3 < steps.min() < 2e-3
    assert 0.05 < steps.max() < 0.101
    assert not torch.equal(steps[0], steps[1])
    assert torch.equal(scan.A_logs.exp().round()[5], torch.arange(1.0, 17.0))


@NEEDS_MONAI
def test_swin_unetr_is_the_one_of_monai():
    from monai.networks import nets

    network = build("swin_unetr", 2, 3).double().eval()
    theirs = nets.SwinUNETR(in_channels=2, out_channels=3, feature_size=12, spatial_dims=2)
    theirs.load_state_dict(network.swin.state_dict())
    image = torch.randn(1, 2, 64, 96).double()
    with torch.no_grad():
        torch.testing.assert_close(network(image), theirs.double().eval()(image))


def test_swin_unetr_without_monai_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError, match=r"needs MONAI. Install it with `pip install 'vimunet\["):
        build_model("swin_unetr")


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 2, 1), (3, 1, 6, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_follows_its_definition(shape, layout):
    maps = (10 * torch.randn(shape, dtype=torch.float64) + 3).contiguous(memory_format=layout)
    expected = torch.empty_like(maps)
    for image in range(shape[0]):
        for channel in range(shape[1]):
            plane = maps[image, channel]
            centred = plane - plane.sum() / plane.numel()
            variance = (centred**2).sum() / plane.numel()
            expected[image, channel] = centred / (variance + 1e-5).sqrt()
    torch.testing.assert_close(InstanceNorm()(maps), expected)
    assert torch.autograd.gradcheck(InstanceNorm(), maps.requires_grad_())


def test_instance_norm_of_one_pixel_is_zero():
    assert torch.equal(InstanceNorm()(torch.randn(2, 3, 1, 1)), torch.zeros(2, 3, 1, 1))


def test_convolutions_stay_channels_last():
    maps = ConvBlock(4, 8)(torch.randn(2, 4, 8, 8))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert Upsample(8, 4, "transposed")(maps).is_contiguous(memory_format=torch.channels_last)


def test_bilinear_upsampling_may_convolve_first():
    upsample = Upsample(4, 3, "bilinear").double()
    maps = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    published = upsample.conv(F.interpolate(maps, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(upsample(maps), published)


def test_decoder_uses_the_central_channels_of_a_skip():
    decoder = Decoder([8, 4], "transposed")
    skip = torch.randn(1, 12, 8, 8, requires_grad=True)
    decoder(torch.randn(1, 8, 4, 4), [skip]).square().sum().backward()
    used = skip.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert used.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_vit_without_layers_returns_each_patch_at_its_place():
    encoder = ViTEncoder(1, 32, 4, depth=0, num_heads=1, global_layers=[])
    nn.init.ones_(encoder.patch_embed.proj.weight)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    nn.init.zeros_(encoder.pos_embed)
    image = torch.zeros(1, 1, 32, 48)
    image[0, 0, 17, 34] = 1.0  # row 1, column 2 of the grid
    grid = encoder(image)[-1]
    assert grid.shape == (1, 4, 2, 3)
    assert grid[0, 0].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_vit_positions_are_interpolated():
    encoder = ViTEncoder(1, 32, 4, depth=0, num_heads=1, global_layers=[])
    nn.init.zeros_(encoder.patch_embed.proj.weight)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    with torch.no_grad():
        encoder.pos_embed[0, :, :, 0] = torch.tensor([[0.0, 4.0], [0.0, 4.0]])
    grid = encoder(torch.zeros(1, 1, 16, 64))[-1]
    assert grid[0, 0].tolist() == [[0.0, 1.0, 3.0, 4.0]]  # pixel centres at -1/4, 1/4, 3/4, 5/4


def test_relative_positions_are_query_minus_key():
    table = torch.arange(5.0)[:, None]  # offsets -2 ... 2
    assert _relative(table, 3)[:, :, 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert _relative(table, 2)[1, 0] > _relative(table, 2)[0, 0] > _relative(table, 2)[0, 1]


def test_a_stem_gives_its_maps_fine_to_coarse():
    network = build_model("vim_n", depth=1).eval()
    maps = network.encoder(torch.randn(1, 1, 48, 32))
    expected = zip(network.encoder.channels, network.encoder.strides, strict=True)
    assert [tuple(m.shape) for m in maps] == [(1, c, 48 // s, 32 // s) for c, s in expected]
    assert network.encoder.strides == (1, 2, 4, 8, 16)
