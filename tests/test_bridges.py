"""Weights of other tools in our networks: what is loaded, adapted, skipped and missing."""

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vimunet.bridges import sam, umamba, vim, vmunet
from vimunet.bridges.checkpoints import load_pretrained, read_checkpoint
from vimunet.models import build_model

SMALL_VMUNET = {"embed_dim": 16, "depths": [1, 1, 2, 1], "decoder_depths": [1, 2, 1, 1]}
SMALL_UMAMBA = {"features": 8, "max_features": 64, "image_size": 64}


def save(path: Path, state: dict, **others: object) -> Path:
    torch.save({"model": OrderedDict(state), "epoch": 3, **others} if others else state, path)
    return path


def noisy(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


# --- whole checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["umamba_bot", "umamba_enc", "resunet"])
def test_umamba_is_inferred_from_its_weights(name, tmp_path):
    network = noisy(build_model(name, 3, 4, variant="paper", **SMALL_UMAMBA))
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    read, report, tool = read_checkpoint(save(tmp_path / "a.pth", state))
    assert (tool, read.config["model"], read.training) == ("U-Mamba", name, False)
    assert set(report.loaded) == set(network.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(read(image), network(image))
        again = build_model(read.config["model"], **read.config["model_args"])
        again.load_state_dict(read.state_dict())
        assert torch.equal(again.eval()(image), network(image))


def test_umamba_takes_the_plan_of_the_checkpoint(tmp_path):
    options = {**SMALL_UMAMBA, "image_size": [32, 128]}
    network = noisy(build_model("umamba_enc", 1, 2, variant="paper", **options))
    plan = {"patch_size": [32, 128], "pool_op_kernel_sizes": [[1, 1], *[[2, 2]] * 3, [1, 2]]}
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"plans": {"configurations": {"2d": plan}}, "fold": 0},
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    read, _ = umamba.read_checkpoint(tmp_path / "checkpoint_final.pth")
    assert read.fixed_size == (32, 128)
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(read(image), network(image))
    del content["init_args"]
    torch.save(content, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"weights of .*bare.pth do not fit"):
        umamba.read_checkpoint(tmp_path / "bare.pth")
    options = {"image_size": [32, 128], "strides": plan["pool_op_kernel_sizes"]}
    read, _ = umamba.read_checkpoint(tmp_path / "bare.pth", **options)
    with torch.no_grad():
        assert torch.equal(read(image), network(image))


@pytest.mark.parametrize(
    "plans",
    [
        {"patch_size": [32, os.system]},
        {"patch_size": [10**9, 64]},
        {"patch_size": "64", "pool_op_kernel_sizes": 3},
        {"pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2], [2, 2], "22"]},
        {"pool_op_kernel_sizes": [[1, 1]] * 1000},
    ],
    ids=str,
)
def test_plans_that_are_none_are_ignored(plans, tmp_path):
    network = build_model("umamba_bot", variant="paper", **SMALL_UMAMBA)
    init = {"plans": {"configurations": {"2d": plans}}}
    torch.save({"network_weights": network.state_dict(), "init_args": init}, tmp_path / "a.pth")
    assert umamba.read_checkpoint(tmp_path / "a.pth")[0].stride == (16, 16)


def test_copies_that_differ_raise(tmp_path):
    state = build_model("umamba_bot", variant="paper", **SMALL_UMAMBA).state_dict()
    key = "encoder.stem.0.conv1.weight"
    state[f"decoder.{key}"] = state[key].clone()
    _, report = umamba.read_checkpoint(save(tmp_path / "a.pth", state))
    assert list(report.skipped) == [f"decoder.{key}"]
    assert "1 skipped, the same numbers under another name: decoder.encoder.stem" in str(report)
    state[f"decoder.{key}"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=rf"must be equal, but `decoder.{key}` is not `{key}`"):
        umamba.read_checkpoint(save(tmp_path / "a.pth", state))


def test_vmunet_is_inferred_from_its_weights(tmp_path):
    network = noisy(build_model("vmunet", 3, 2, **SMALL_VMUNET))
    state = network.state_dict()
    state["vmunet.layers.0.blocks.0.total_ops"] = torch.zeros(1)
    torch.save({"model_state_dict": state, "epoch": 7}, tmp_path / "latest.pth")
    read, report, tool = read_checkpoint(tmp_path / "latest.pth")
    assert (tool, read.config["model"], read.training) == ("VM-UNet", "vmunet", False)
    assert dict(report.skipped) == {
        "vmunet.layers.0.blocks.0.total_ops": "a count of operations, not a weight"
    }
    image = torch.randn(1, 3, 32, 64)
    grey, _, _ = read_checkpoint(tmp_path / "latest.pth", in_channels=1)
    with torch.no_grad():
        assert torch.equal(read(image), network(image))
        assert torch.equal(grey(image[:, :1]), network(image[:, :1].expand(1, 3, 32, 64)))


def test_torch_em_is_read_as_before(tmp_path):
    network = build_model("unet", features=4, depth=2)
    torch.save({"model_state": network.state_dict()}, tmp_path / "best.pt")
    read, report, tool = read_checkpoint(tmp_path / "best.pt")
    assert (tool, len(report.loaded)) == ("torch-em", len(network.state_dict()))
    assert read.config["model"] == "unet"


@pytest.mark.parametrize(
    ("reader", "message"),
    [(vmunet, "must hold a VM-UNet"), (umamba, "must hold a two-dimensional U-Mamba")],
)
def test_other_weights_raise(reader, message, tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"{message}, got weights named bias, weight"):
        reader.read_checkpoint(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="No checkpoint file"):
        reader.read_checkpoint(tmp_path / "b.pth")


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


@pytest.mark.parametrize("reader", [read_checkpoint, umamba.read_checkpoint])
def test_nothing_in_a_checkpoint_is_executed(reader, tmp_path):
    flag = tmp_path / "flag"
    attack = Call(os.system, f"touch {flag}")
    state = build_model("umamba_bot", variant="paper", **SMALL_UMAMBA).state_dict()
    content = {"network_weights": state, "init_args": {"plans": {"configurations": attack}}}
    torch.save(content, tmp_path / "a.pth")
    assert reader(tmp_path / "a.pth")[0].config["model"] == "umamba_bot"
    assert not flag.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)  # the attack is real
    assert flag.exists()


# --- pretrained weights --------------------------------------------------------------------------


def vmamba_state(embed_dim: int = 16, depths: tuple[int, ...] = (2, 2, 27, 2)) -> dict:
    """Weights named and shaped as those of VMamba's first version."""
    donor = build_model("vmunet", 3, 1, embed_dim=embed_dim, depths=depths)
    state = {
        key.removeprefix("vmunet."): value
        for key, value in noisy(donor).state_dict().items()
        if key.startswith(("vmunet.patch_embed.", "vmunet.layers."))
    }
    width = 8 * embed_dim
    return {
        **state,
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "head.weight": torch.zeros(1000, width),
        "head.bias": torch.zeros(1000),
    }


def test_vmamba_fills_encoder_and_decoder(tmp_path):
    state = vmamba_state()
    assert len(state) == 446  # as users of the published code report
    network = build_model("vmunet", 1, 1, embed_dim=16)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_pretrained(network, save(tmp_path / "vssmsmall.pth", state, optimizer={}))
    after = network.state_dict()
    encoder = [name for name in report.loaded if ".layers_up." not in name]
    assert (len(encoder), len(report.loaded), len(after)) == (117, 117 + 7 * 13, 222)
    assert torch.equal(
        after["vmunet.layers.2.blocks.1.ln_1.bias"], state["layers.2.blocks.1.ln_1.bias"]
    )
    for stage, blocks in enumerate((2, 2, 2, 1)):
        for block in range(blocks):
            key = f"blocks.{block}.self_attention.x_proj_weight"
            assert torch.equal(
                after[f"vmunet.layers_up.{stage}.{key}"], state[f"layers.{3 - stage}.{key}"]
            )
    assert set(report.missing) == set(after) - set(report.loaded)
    assert all(torch.equal(after[name], before[name]) for name in report.missing)
    assert {name.split(".")[1] for name in report.missing} == {
        "layers_up",
        "final_up",
        "final_conv",
    }
    assert len(report.skipped) == 446 - 117
    assert "329 skipped, the network has no such layer: layers.2.* (325), norm.weight" in str(
        report
    )

    network = build_model("vmunet", 1, 1, embed_dim=16)
    report = vmunet.load_pretrained(network, tmp_path / "vssmsmall.pth", decoder=False)
    assert len(report.loaded) == 117


def test_vmamba_of_later_code_is_renamed(tmp_path):
    renamed = {}
    for key, value in vmamba_state(depths=(1, 1, 1, 1)).items():
        new = key.replace("patch_embed.proj.", "patch_embed.0.")
        new = new.replace("patch_embed.norm.", "patch_embed.2.").replace(".ln_1.", ".norm.")
        new = new.replace("downsample.norm.", "downsample.1.").replace(".self_attention.", ".op.")
        new = new.replace("downsample.reduction.", "downsample.2.")
        renamed[f"classifier.{new}" if new.startswith(("norm.", "head.")) else new] = value
    network = build_model("vmunet", 3, 1, embed_dim=16, depths=(1, 1, 1, 1))
    report = load_pretrained(network, save(tmp_path / "a.pth", renamed, args=None))
    assert len([name for name in report.loaded if ".layers_up." not in name]) == 4 + 4 * 13 + 9
    assert set(report.skipped) == {
        f"classifier.{part}" for part in ("norm.weight", "norm.bias", "head.weight", "head.bias")
    }


def test_weights_of_another_size_raise_and_change_nothing(tmp_path):
    network = build_model("vmunet", 3, 1, embed_dim=32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = save(tmp_path / "a.pth", vmamba_state(depths=(1, 1, 1, 1)), args=None)
    with pytest.raises(ValueError, match=r"must have shape \(32,.*\), got \(16,"):
        load_pretrained(network, path)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def vim_state(variant: str, size: int) -> dict[str, torch.Tensor]:
    """Weights named and shaped as those of Vision Mamba."""
    options = {"variant": variant, "embed_dim": 32, "depth": 2, "num_classes": 10}
    donor = noisy(build_model("vim_t", 3, 1, image_size=size, **options))
    return {
        key.removeprefix("encoder."): value
        for key, value in donor.state_dict().items()
        if key.startswith("encoder.")
    }


SMALL_VIM = {"embed_dim": 32, "depth": 2}


@pytest.mark.parametrize("class_token", ["middle", "front"])
def test_vim_positions_move_without_the_class_token(class_token, tmp_path):
    state = vim_state("torch-em-0.7.5", 48)  # 3 x 3 patches, the class token before patch 4
    marks = torch.arange(9.0)
    special = {"middle": 4, "front": 0}[class_token]
    rows = torch.cat([marks[:special], torch.tensor([100.0]), marks[special:]])
    state["pos_embed"] = rows[None, :, None].expand(1, 10, 32).clone()
    path = save(tmp_path / "vim.pth", state, args=None)

    network = build_model("vim_t", 1, 2, image_size=48, **SMALL_VIM)
    report = vim.load_pretrained(network, path, class_token=class_token)
    assert network.encoder.pos_embed[0, :, 0].tolist() == marks.tolist()
    assert report.adapted["encoder.pos_embed"] == "without the row of the class token"

    network = build_model("vim_t", 1, 2, image_size=96, **SMALL_VIM)
    report = vim.load_pretrained(network, path, class_token=class_token)
    wanted = functional.interpolate(marks.reshape(1, 1, 3, 3), (6, 6), mode="bicubic")
    torch.testing.assert_close(network.encoder.pos_embed[0, :, 5], wanted.flatten())
    assert "interpolated from 3 x 3 to 6 x 6 patches" in str(report)

    network = build_model("vim_t", 1, 2, image_size=64, variant="torch-em-0.7.5", **SMALL_VIM)
    vim.load_pretrained(network, path, class_token=class_token)
    found = network.encoder.pos_embed[0, :, 0]
    wanted = functional.interpolate(marks.reshape(1, 1, 3, 3), (4, 4), mode="bicubic").flatten()
    torch.testing.assert_close(found, torch.cat([wanted[:8], torch.tensor([100.0]), wanted[8:]]))


def test_vim_loads_the_encoder_and_says_what_it_did(tmp_path):
    state = vim_state("torch-em-0.7.5", 224)
    path = save(tmp_path / "vim.pth", state, model_ema=state, args=None)
    network = build_model("vim_t", 1, 2, **SMALL_VIM)
    report = load_pretrained(network, path)
    after = network.state_dict()
    for name in report.loaded:
        assert torch.equal(after[name], state[name.removeprefix("encoder.")])
    kernel = "encoder.patch_embed.proj.weight"
    assert torch.equal(after[kernel], state["patch_embed.proj.weight"].sum(dim=1, keepdim=True))
    assert dict(report.adapted) == {
        "encoder.pos_embed": "interpolated from 14 x 14 to 32 x 32 patches, "
        "without the row of the class token",
        kernel: "summed over the colours",
    }
    assert set(report.skipped) == {"cls_token", "head.weight", "head.bias"}
    assert all(not name.startswith("encoder.") for name in report.missing)
    assert {name.split(".")[0] for name in report.missing} >= {"base", "decoder", "out_conv"}
    assert not report.notes


def test_vim_weights_make_the_same_encoder(tmp_path):
    """The encoder of a published network gets the features of the one that the weights are from."""
    options = {**SMALL_VIM, "variant": "paper", "image_size": 64, "num_classes": 10}
    donor = noisy(build_model("vim_t", 3, 1, **options))
    state = {
        key.removeprefix("encoder."): value
        for key, value in donor.state_dict().items()
        if key.startswith("encoder.")
    }
    path = save(tmp_path / "vim.pth", state, args=None)
    network = build_model("vim_t", 3, 1, **options).eval()
    report = load_pretrained(network, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.encoder(image)[-1], donor.encoder(image)[-1])
    assert set(report.skipped) == {"rope.freqs_cos", "rope.freqs_sin"}
    assert not report.notes
    report = load_pretrained(build_model("vim_t", 3, 1, **SMALL_VIM), path)
    assert report.notes == [
        "trained with rotary embedding, the network has none",
        "trained with the sum of both directions, the network takes their mean",
    ]


def test_positions_of_no_square_raise(tmp_path):
    state = vim_state("torch-em-0.7.5", 64)
    del state["cls_token"]
    path = save(tmp_path / "vim.pth", state, args=None)
    with pytest.raises(ValueError, match="for each patch of a square, got 17 rows"):
        load_pretrained(build_model("vim_t", 3, 1, **SMALL_VIM), path)


SMALL_UNETR = {"embed_dim": 32, "depth": 4, "num_heads": 2, "window": 2, "global_layers": [1, 3]}


@pytest.mark.parametrize("prefix", ["image_encoder.", "sam.image_encoder.", ""])
def test_sam_encoder_gives_the_same_features(prefix, tmp_path):
    donor = noisy(build_model("unetr_b", 3, 1, variant="paper", image_size=64, **SMALL_UNETR))
    state = {
        f"{prefix}{key.removeprefix('encoder.')}": value
        for key, value in donor.state_dict().items()
        if key.startswith("encoder.")
    }
    if prefix:
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    path = save(tmp_path / "sam_vit_b.pth", state)
    network = build_model("unetr_b", 3, 2, image_size=64, **SMALL_UNETR).eval()
    report = load_pretrained(network, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.encoder(image)[-1], donor.encoder(image)[-1])
    assert len(report.skipped) == 6 + bool(prefix)  # the neck and what is not the encoder

    network = build_model("unetr_b", 1, 2, image_size=32, **SMALL_UNETR).eval()
    report = sam.load_pretrained(network, path)
    adapted = dict(report.adapted)
    assert adapted.pop("encoder.pos_embed") == "interpolated from 4 x 4 to 2 x 2 patches"
    assert adapted.pop("encoder.patch_embed.proj.weight") == "summed over the colours"
    assert set(adapted) == {
        f"encoder.blocks.{layer}.attn.rel_pos_{axis}" for layer in (1, 3) for axis in "hw"
    }
    assert set(adapted.values()) == {"interpolated from 7 to 3 offsets"}
    # At the size of the network, the encoder of the file interpolates the same by itself.
    grey = torch.randn(1, 1, 32, 32)
    network_at_64 = build_model("unetr_b", 1, 2, image_size=64, **SMALL_UNETR).eval()
    sam.load_pretrained(network_at_64, path)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(grey)[-1], network_at_64.encoder(grey)[-1])


def test_networks_without_published_weights_raise(tmp_path):
    for load in (load_pretrained, vim.load_pretrained):
        with pytest.raises(TypeError, match="tokens are patches of the image, got one with `conv_"):
            load(build_model("vim_n", depth=1), tmp_path / "vim.pth")
    with pytest.raises(ValueError, match="to start from published weights, got a UNet"):
        load_pretrained(build_model("unet", features=4), tmp_path / "a.pth")
    with pytest.raises(TypeError, match="`network` must be a ViM-UNet, got a UNet"):
        vim.load_pretrained(build_model("unet", features=4), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no weights for this network"):
        path = save(tmp_path / "a.pth", torch.nn.Linear(2, 3).state_dict())
        load_pretrained(build_model("vim_t", **SMALL_VIM), path)
    state = {"patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}
    with pytest.raises(ValueError, match="`in_channels` must be 1 or 3 for the weights of"):
        path = save(tmp_path / "b.pth", state)
        load_pretrained(build_model("vim_t", 5, **SMALL_VIM), path)
