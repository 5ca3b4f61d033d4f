"""The Vision Mamba encoder: golden values of the published ones, and the place of each patch."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from golden_fill import fill
from torch import Tensor
from torch.nn import functional

from vimunet.models.vim import GatedConvolution, VimEncoder

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vim_encoder.json").read_text())
PUBLISHED = {
    "v1": {"rope": True, "class_token": "front", "average": False},
    "v2": {"class_token": "middle", "legacy_removal": True},
}


def small_encoder(**options) -> VimEncoder:
    """An encoder of 3 layers for images around 64 x 64."""
    arguments = {"in_channels": 1, "image_size": 64, "embed_dim": 16, "depth": 3} | options
    return VimEncoder(**arguments).eval()


@pytest.mark.parametrize("size", ["E32_d4", pytest.param("E192_d24", marks=pytest.mark.slow)])
@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_golden_grid_of_the_published_encoders(generation, size):
    golden = GOLDEN["grids"][f"{generation}_{size}"]
    options = PUBLISHED[generation]
    encoder = VimEncoder(3, 64, golden["embed_dim"], golden["depth"], keep_head=10, **options)
    names = sorted(name for name in encoder.state_dict() if "rope" not in name)
    state = {name: value for name, value in encoder.state_dict().items() if "rope" in name}
    for k, name in enumerate(names, start=GOLDEN["first_index"]):
        state[name] = fill(k, name, tuple(encoder.state_dict()[name].shape))
    encoder.load_state_dict(state)
    image = torch.sin(0.11 * torch.arange(48 * 64, dtype=torch.float64)).float().double()
    image = functional.pad(image.reshape(1, 1, 48, 64), (0, 0, 0, 16)).expand(1, 3, 64, 64)
    with torch.no_grad():
        grid = encoder.eval().double()(image)[-1]
        in_float32 = encoder.float()(image.float())[-1]
    for index, value in golden["elements"].items():
        assert grid[tuple(json.loads(index))].item() == pytest.approx(value, abs=1e-8)
    assert grid.mean().item() == pytest.approx(golden["mean"], abs=1e-8)
    assert grid.std().item() == pytest.approx(golden["std"], abs=1e-8)
    torch.testing.assert_close(in_float32.double(), grid, rtol=0, atol=1e-4)


def test_state_dict_has_the_published_names():
    encoder = VimEncoder(3, 64, 32, 4, keep_head=10, **PUBLISHED["v1"])
    state = encoder.state_dict()
    rotary = {name: state.pop(name) for name in list(state) if "rope" in name}
    assert sorted([name, list(x.shape)] for name, x in state.items()) == GOLDEN["v1_layout"]
    assert sorted(rotary) == ["rope.freqs_cos", "rope.freqs_sin"]
    assert {(x.dtype, tuple(x.shape)) for x in rotary.values()} == {(torch.float32, (16, 32))}


@pytest.mark.parametrize("generation", ["v1", "v2"])
@pytest.mark.parametrize(
    ("embed_dim", "parameters"), [(192, 7_896_808), (384, 27_294_184), (768, 100_593_640)]
)
def test_number_of_parameters_is_the_published_one(generation, embed_dim, parameters):
    with torch.device("meta"):
        encoder = VimEncoder(3, 1024, embed_dim, 24, keep_head=1000, **PUBLISHED[generation])
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def identity_tokens(encoder: VimEncoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the layers into the identity and the positions to zero; return map and patches.

    The patches are those of the projection alone, normalised, as (b, c, rows, columns).
    """
    with torch.no_grad():
        for layer in encoder.layers:
            layer.mixer.out_proj.weight.zero_()
        encoder.pos_embed.zero_()
        grid = encoder(image)[-1]
        patches = encoder.norm_f(encoder.patch_embed.proj(image).movedim(1, -1)).movedim(-1, 1)
    return grid, patches


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (64, 64)),
        ({}, (48, 112)),
        ({"class_token": "front"}, (64, 64)),
        ({"class_token": "middle"}, (64, 64)),
        ({"patch_size": 1, "image_size": 4}, (5, 3)),
        ({"patch_size": 8}, (24, 40)),
        ({"mixer": "convolution"}, (48, 112)),
    ],
)
def test_each_patch_comes_back_at_its_own_place(options, shape):
    encoder = small_encoder(**options)
    grid, patches = identity_tokens(encoder, torch.randn(2, 1, *shape))
    side = options.get("patch_size", 16)
    assert encoder.strides == (side,)
    assert grid.shape == (2, 16, shape[0] // side, shape[1] // side)
    torch.testing.assert_close(grid, patches)


def test_legacy_removal_shifts_the_upper_half_by_one_patch():
    encoder = small_encoder(**PUBLISHED["v2"])
    grid, patches = identity_tokens(encoder, torch.randn(1, 1, 64, 64))
    grid, patches = grid.flatten(2), patches.flatten(2)
    torch.testing.assert_close(grid[..., :7], patches[..., 1:8])
    torch.testing.assert_close(grid[0, :, 7], encoder.norm_f(encoder.cls_token)[0, 0])
    torch.testing.assert_close(grid[..., 8:], patches[..., 8:])


def test_positions_are_left_alone_at_the_native_size():
    encoder = small_encoder()
    assert encoder._positions(4, 4) is encoder.pos_embed


def test_positions_keep_rows_and_columns_apart_at_other_sizes():
    """Channel 0 holds the row, channel 1 the column, in units of the image's height and width."""
    encoder = small_encoder(image_size=128, embed_dim=4)
    centers = (torch.arange(8) + 0.5) / 8
    ramps = torch.zeros(8, 8, 4)
    ramps[..., 0], ramps[..., 1], ramps[..., 2] = centers[:, None], centers[None, :], 1.0
    with torch.no_grad():
        encoder.pos_embed.copy_(ramps.reshape(1, 64, 4))
    positions = encoder._positions(16, 24).detach().reshape(16, 24, 4)
    rows, columns = (torch.arange(16) + 0.5) / 16, (torch.arange(24) + 0.5) / 24
    inner = positions[4:-4, 6:-6]  # beyond, the grid has no neighbour to lean on
    # Bicubic interpolation bends a ramp by up to a tenth of a cell.
    torch.testing.assert_close(inner[..., 0], rows[4:-4, None].expand(8, 12), rtol=0, atol=0.007)
    torch.testing.assert_close(inner[..., 1], columns[6:-6].expand(8, 12), rtol=0, atol=0.007)
    torch.testing.assert_close(positions[..., 2], torch.ones(16, 24))


def test_rotation_by_hand():
    """Row 1 of 2 is 7 steps down: pairs of the first half turn by 7 and 7 / 100 radians."""
    encoder = VimEncoder(1, 32, 8, 1, rope=True)
    rotated = encoder.rope(torch.tensor([1.0, 0.0] * 4).expand(1, 4, 8), None)[0]
    still, fast, slow = [1.0, 0.0], [math.cos(7), math.sin(7)], [math.cos(0.07), math.sin(0.07)]
    expected = [[*still * 4], [*still * 2, *fast, *slow], [*fast, *slow, *still * 2]]
    expected.append([*fast, *slow] * 2)
    torch.testing.assert_close(rotated, torch.tensor(expected))


def test_intermediate_maps_are_what_the_next_layer_reads():
    encoder = small_encoder(intermediate=(0, 1))
    seen = []
    for layer in encoder.layers:
        layer.mixer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(2, 1, 32, 64)
    with torch.no_grad():
        maps = encoder(image)
    assert [m.shape for m in maps] == [(2, c, 2, 4) for c in encoder.channels]
    assert encoder.strides == (16, 16, 16)
    for grid, tokens in zip(maps[:2], seen[1:], strict=True):
        assert torch.equal(grid.flatten(2).transpose(1, 2), tokens)
    encoder.intermediate = ()
    with torch.no_grad():
        assert torch.equal(encoder(image)[-1], maps[-1])


@pytest.mark.parametrize("options", [{}, {"mixer": "convolution"}, *PUBLISHED.values()])
def test_batch_of_two_is_two_batches_of_one(options):
    encoder, image = small_encoder(**options), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        both = encoder(image)[-1]
        alone = torch.cat([encoder(image[:1])[-1], encoder(image[1:])[-1]])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


def test_every_parameter_learns_but_the_unused_head():
    encoder = small_encoder(image_size=32, keep_head=5, class_token="middle").train()
    encoder(torch.randn(2, 1, 32, 32))[-1].square().mul(torch.rand(2, 2)).sum().backward()
    for name, parameter in encoder.named_parameters():
        if name.startswith("head"):
            assert not parameter.requires_grad
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_gated_convolution_by_its_definition():
    """Each output is the sum over the tokens around, on the grid, of the same inner channel."""
    layer = GatedConvolution(4, kernel_size=3).double()
    tokens = torch.randn(2, 5 * 7, 4, dtype=torch.float64)
    signal, gate = (tokens @ part.T for part in layer.in_proj.weight.chunk(2))
    expected = torch.zeros(2, 5, 7, 8, dtype=torch.float64)
    for y, x in itertools.product(range(5), range(7)):
        around = layer.conv2d.bias.clone().expand(2, 8)
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= y + dy < 5 and 0 <= x + dx < 7:
                weight = layer.conv2d.weight[:, 0, 1 + dy, 1 + dx]
                around = around + weight * signal[:, 7 * (y + dy) + x + dx]
        expected[:, y, x] = functional.silu(around)
    expected = (expected.flatten(1, 2) * functional.silu(gate)) @ layer.out_proj.weight.T
    torch.testing.assert_close(layer(tokens, 7), expected)


def test_convolutions_see_as_far_as_their_kernel_and_scans_see_everything():
    image = torch.zeros(1, 1, 20, 20)
    changed = image.clone()
    changed[0, 0, 2, 3] = 1
    for mixer, reach in (("convolution", 6), ("mamba", 20)):
        encoder = small_encoder(mixer=mixer, depth=1, patch_size=1, image_size=20)
        with torch.no_grad():
            moved = (encoder(changed)[-1] != encoder(image)[-1]).any(dim=1)[0]
        seen = torch.zeros(20, 20, dtype=torch.bool)
        seen[: 3 + reach, : 4 + reach] = True
        assert torch.equal(moved, seen)


def test_stochastic_depth_grows_to_the_last_layer():
    encoder = VimEncoder(1, 32, 16, 5, drop_path_rate=0.2)
    rates = [layer.drop_path.rate for layer in encoder.layers]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_new_encoder_keeps_the_start_of_its_mixers():
    torch.manual_seed(1)
    encoder = VimEncoder(1, 64, 64, 16)
    for layer in encoder.layers:
        for projection in (layer.mixer.dt_proj, layer.mixer.dt_proj_b):
            steps = functional.softplus(projection.bias)
            assert 0.9e-3 < steps.min() < steps.max() < 0.101
        bound = 128**-0.5 / math.sqrt(16)  # kaiming, divided by the root of the depth
        assert 0.95 * bound < layer.mixer.out_proj.weight.abs().max() <= bound
    assert encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    patch = encoder.patch_embed.proj
    assert patch.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert patch.bias.abs().max() == 0


def test_autocast_stays_close_and_keeps_the_residual_in_float32():
    encoder, image = small_encoder(depth=6, embed_dim=32), torch.randn(1, 1, 96, 96)
    dtypes = []
    encoder.norm_f.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    with torch.no_grad():
        expected = encoder(image)[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = encoder(image)[-1]
    assert dtypes == [torch.float32] * 2
    error = (output.float() - expected).square().mean().sqrt()  # the norm makes the spread 1
    assert error < 0.02


def test_wrong_images_are_refused():
    with pytest.raises(
        ValueError,
        match=r"Image size \(50, 64\) must be divisible by 16\. Pad it to \(64, 64\), "
        "or call `predict`, which pads for you",
    ):
        small_encoder()(torch.zeros(1, 1, 50, 64))
    with pytest.raises(ValueError, match=r"must have shape \(b, 1, y, x\), got \(1, 3, 64, 64\)"):
        small_encoder()(torch.zeros(1, 3, 64, 64))
    for options in PUBLISHED.values():
        with pytest.raises(ValueError, match=r"Image size \(48, 64\) must be \(64, 64\)"):
            small_encoder(**options)(torch.zeros(1, 1, 48, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "`image_size` must be a multiple of 16, got 100"),
        ({"class_token": "end"}, "`class_token` must be 'front', 'middle' or None, got 'end'"),
        ({"mixer": "attention"}, "Unknown `mixer` 'attention'. Known: convolution, mamba"),
        (
            {"mixer": "convolution", "class_token": "front"},
            "`mixer` must be 'mamba' with a class token, got 'convolution'",
        ),
        ({"legacy_removal": True}, "`legacy_removal` must be False without a class token"),
        ({"rope": True, "embed_dim": 18}, "`embed_dim` must be divisible by 4 for `rope`, got 18"),
        ({"intermediate": (1, 0)}, r"`intermediate` must be ascending layers from 0 to 1, got"),
        ({"intermediate": (2,)}, r"`intermediate` must be ascending layers from 0 to 1, got \(2,"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_encoder(**options)
