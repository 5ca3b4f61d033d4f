"""Checkpoints of torch-em: what is inferred from them, and that they cannot do harm.

torch-em is not needed: the files are written here by `torch.save`, with stand-ins for the objects
that torch-em pickles beside the weights.
"""

import builtins
import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from vimunet.bridges.torch_em import read_checkpoint
from vimunet.models import build_model

SMALL_VIM = {"embed_dim": 32, "depth": 2, "image_size": 64, "num_classes": 10}
SMALL_UNETR = {
    "variant": "paper",
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 4,
    "image_size": 64,
    "window": 3,
    "global_layers": [1, 2, 3],
}
NETWORKS = {
    "vim-paper": ("vim_t", {**SMALL_VIM, "variant": "paper"}),
    "vim-0.7.5": ("vim_t", {**SMALL_VIM, "variant": "torch-em-0.7.5"}),
    "vim-0.7.10": ("vim_t", {**SMALL_VIM, "variant": "torch-em-0.7.10", "out_channels": 3}),
    "vim-wide": ("vim_s", {**SMALL_VIM, "variant": "torch-em-0.7.5", "embed_dim": 384}),
    "unet": ("unet", {"features": 4, "depth": 3, "in_channels": 3}),
    "unet-bilinear": ("unet", {"features": 4, "upsampling": "bilinear", "out_channels": 1}),
    "unetr": ("unetr_b", {**SMALL_UNETR, "skip_connections": True}),
    "unetr-plain": ("unetr_b", {**SMALL_UNETR, "upsampling": "bilinear"}),
    "unetr-global": ("unetr_b", {**SMALL_UNETR, "window": 4, "global_layers": [0, 1, 2, 3]}),
}


def save(path: Path, state: object, **others: object) -> Path:
    torch.save({"iteration": 7, "model_state": state, **others}, path)
    return path


@pytest.fixture
def unet_state() -> dict[str, torch.Tensor]:
    return build_model("unet", features=4, depth=2).state_dict()


@pytest.mark.parametrize("case", NETWORKS)
def test_network_is_inferred_from_the_weights(case, tmp_path):
    name, options = NETWORKS[case]
    network = build_model(name, **options).eval()
    read = read_checkpoint(save(tmp_path / "best.pt", network.state_dict()))

    assert not read.training
    assert read.config["model"] == name
    weights = network.state_dict()
    assert read.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in read.state_dict().items())
    frozen = [key for key, value in network.named_parameters() if not value.requires_grad]
    assert frozen == [key for key, value in read.named_parameters() if not value.requires_grad]
    image = torch.randn(1, read.in_channels, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(read(image), network(image), rtol=0, atol=1e-5)
        again = build_model(read.config["model"], **read.config["model_args"])
        again.load_state_dict(read.state_dict())
        torch.testing.assert_close(again.eval()(image), read(image), rtol=0, atol=1e-5)


def test_bare_state_dict_compiled_network_and_half_precision(tmp_path, unet_state):
    torch.save(
        {f"_orig_mod.{key}": value.half() for key, value in unet_state.items()}, tmp_path / "a"
    )
    read = read_checkpoint(tmp_path / "a").state_dict()
    assert read.keys() == unet_state.keys()
    assert all(value.dtype == torch.float32 for value in read.values())
    assert all(torch.equal(read[key], unet_state[key].half().float()) for key in read)


def test_parameters_and_weights_that_share_or_reorder_memory(tmp_path, unet_state):
    both = torch.randn(40)
    state = dict(unet_state)
    state["base.block.1.bias"] = torch.nn.Parameter(torch.randn(16))
    state["encoder.blocks.0.block.1.bias"] = both[3:7]
    state["encoder.blocks.0.block.4.bias"] = both[:8:2]
    state["base.block.4.weight"] = state["base.block.4.weight"].to(
        memory_format=torch.channels_last
    )
    read = read_checkpoint(save(tmp_path / "best.pt", state)).state_dict()
    assert all(torch.equal(read[key], state[key]) for key in read)
    assert all(value.is_contiguous() for value in read.values())


def test_overrides(tmp_path):
    network = build_model("unetr_b", **SMALL_UNETR)
    path = save(tmp_path / "best.pt", network.state_dict())
    read = read_checkpoint(path, in_channels=3, resize_input=False, sam_stats=True)
    assert (read.in_channels, read.max_size, read.canvas.sam_stats) == (3, (64, 64), True)
    assert read_checkpoint(path).max_size is None
    with pytest.raises(
        ValueError, match=r"weights of .* do not fit .* must have shape \(5,\), got \(2,\)"
    ):
        read_checkpoint(path, out_channels=5)
    with pytest.raises(ValueError, match="Unknown option 'patch_size'"):
        read_checkpoint(path, patch_size=8)


class Gone:
    """Will not be importable when the file is read; keeps a list, a set and a state of its own."""

    def __init__(self) -> None:
        self.path = "/data/livecell"
        self.tensor = torch.ones(3)


def test_objects_of_unknown_classes_are_ignored(tmp_path, unet_state, monkeypatch):
    module = types.ModuleType("a_training_library")
    for base in (object, list, dict, set):
        vanished = type(f"Gone_{base.__name__}", (base,), {"__module__": "a_training_library"})
        setattr(module, vanished.__name__, vanished)
    monkeypatch.setitem(sys.modules, "a_training_library", module)
    gone = module.Gone_object()
    gone.sampler, gone.tensor = torch.nn.Linear(2, 2), torch.ones(3)
    init = {
        "dataset": gone,
        "list": module.Gone_list([1, gone]),
        "dict": module.Gone_dict(a=gone),
        "set": module.Gone_set({1, 2}),
        "function": os.path.join,
        "counter": collections.Counter("abc"),
        "slots": pickle.PickleBuffer,
    }
    path = save(tmp_path / "best.pt", unet_state, init=init, optimizer_state={"state": {}})
    monkeypatch.delitem(sys.modules, "a_training_library")
    read = read_checkpoint(path).state_dict()
    assert all(torch.equal(read[key], unet_state[key]) for key in unet_state)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple:
        return self.function, self.arguments, self.state

    __call__ = __reduce__  # only what can be called may be pickled as a call


def attacks(flag: Path) -> dict[str, object]:
    """Things to pickle that would create the file `flag`, each in another way."""
    write = f"open({str(flag)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {flag}"),
        "builtins.exec": Call(builtins.exec, write),
        "builtins.eval": Call(builtins.eval, write),
        "Path.touch": Call(Path.touch, flag),
        "getattr": Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {flag}"),
        "torch.load": Call(torch.load, str(flag)),
        "state": Call(collections.OrderedDict, state=Call(os.system, f"touch {flag}")),
        "items": Call(collections.OrderedDict, state={"items": Call(os.system, f"touch {flag}")}),
        "rebuild": Call(
            torch._utils._rebuild_tensor_v2, Call(os.system, f"touch {flag}"), 0, (), ()
        ),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_hostile_objects_beside_the_weights_do_nothing(attack, tmp_path, unet_state):
    flag = tmp_path / "flag"
    path = save(tmp_path / "best.pt", unet_state, init={"dataset": [attacks(flag)[attack]]})
    read = read_checkpoint(path).state_dict()
    assert not flag.exists()
    assert all(torch.equal(read[key], unet_state[key]) for key in unet_state)


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_hostile_weights_do_nothing_and_raise(attack, tmp_path, unet_state):
    flag = tmp_path / "flag"
    unet_state["out_conv.bias"] = attacks(flag)[attack]
    path = save(tmp_path / "best.pt", unet_state)
    with pytest.raises(ValueError, match="must hold tensors only, got 'out_conv.bias'"):
        read_checkpoint(path)
    torch.save(attacks(flag)[attack], path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        read_checkpoint(path)
    assert not flag.exists()


def test_a_normal_load_would_have_run_them(tmp_path):
    """The attacks above are real: torch itself, told to trust the file, runs them."""
    flag = tmp_path / "flag"
    torch.save(attacks(flag)["builtins.exec"], tmp_path / "best.pt")
    torch.load(tmp_path / "best.pt", weights_only=False)
    assert flag.exists()


def rewrite(path: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip file again, each entry as `change(name, content)` says."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)


def put_pickle(path: Path, pickled: bytes) -> Path:
    torch.save({}, path)
    rewrite(path, lambda name, content: pickled if name.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "must hold a state dict, or a dict with `model_state`"),
        (b"(S'true'\nios\nsystem\n.", "must hold a state dict"),
        (b"ctorch\nFloatStorage\n(I1\ntR.", "must hold a valid pickle, got: .*not callable"),
        (b"ctorch\nFloatStorage\n}S'a'\nI1\nsb.", "must hold a valid pickle"),
        (b"ccollections\nOrderedDict\n}S'a'\nI1\nsb.", "must hold a state dict"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", "must hold a valid pickle"),
        (b"(dS'model_state'\n(dI1\nI2\nss.", "must hold tensors only, got 1"),
        (b"\x80\x02}X\x01\x00\x00\x00aq\x01", "must hold a valid pickle"),
        (b"", "must hold a valid pickle"),
        (b"\x82\x01.", "must hold a valid pickle"),
    ],
)
def test_hand_written_pickles(pickled, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(put_pickle(tmp_path / "best.pt", pickled))


def tensor_pickle(offset, shape, stride, numel=4, dtype="FloatStorage", key="0") -> bytes:
    """A checkpoint with one tensor of any description."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Storage):
                return "storage", getattr(torch, dtype), key, "cpu", numel
            return None

    arguments = (Storage(), offset, shape, stride, False, collections.OrderedDict())
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=2)
    pickler.dump({"out_conv.weight": Call(torch._utils._rebuild_tensor_v2, *arguments)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**12,), (0,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (0, "22", (1, 1)),
        (True, (2,), (1,)),
    ],
)
def test_tensors_that_do_not_fit_their_storage_raise(offset, shape, stride, tmp_path):
    path = put_pickle(tmp_path / "best.pt", tensor_pickle(offset, shape, stride))
    with pytest.raises(ValueError, match="must hold tensors only, got 'out_conv.weight'"):
        read_checkpoint(path)
    path = put_pickle(tmp_path / "best.pt", tensor_pickle(0, (2, 2, 1, 1), (2, 1, 1, 1)))
    with pytest.raises(ValueError, match="must hold a ViM-UNet, UNETR or UNet of torch-em"):
        read_checkpoint(path)


def test_shapes_that_ask_for_a_huge_network_take_no_memory(tmp_path):
    empty = torch.zeros(1).expand(1, 4097, 10**9)
    state = {
        "encoder.cls_token": empty[:, :1],
        "encoder.pos_embed": empty,
        "encoder.head.weight": empty[0, :10],
        "out_conv.weight": empty[:, :2],
    }
    with pytest.raises(ValueError, match="must hold tensors only"):
        read_checkpoint(save(tmp_path / "best.pt", state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, content: None if name.endswith("/data/3") else content,
            "the file is damaged",
        ),
        (
            lambda name, content: content[:-4] if "/data/" in name else content,
            "the file is damaged",
        ),
        (lambda name, content: None if "data.pkl" in name else content, "written by `torch.save`"),
        (lambda name, content: b"big" if "byteorder" in name else content, "byte order"),
    ],
)
def test_incomplete_files_raise(change, message, tmp_path, unet_state):
    path = save(tmp_path / "best.pt", unet_state)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


def test_damaged_and_foreign_files_raise(tmp_path, unet_state):
    with pytest.raises(FileNotFoundError, match="No checkpoint file"):
        read_checkpoint(tmp_path / "best.pt")
    path = save(tmp_path / "best.pt", unet_state)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be an undamaged zip file"):
            read_checkpoint(path)
    middle = whole.index(unet_state["base.block.4.weight"].numpy().tobytes()[:64])
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(ValueError, match="must be an undamaged zip file"):
        read_checkpoint(path)
    path.write_bytes(whole)
    rewrite(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_checkpoint(path)
    torch.save({"model_state": unet_state}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="before 1.6 again with a newer torch"):
        read_checkpoint(path)


def test_other_networks_raise(tmp_path, unet_state):
    other = torch.nn.Linear(2, 3).state_dict()
    with pytest.raises(ValueError, match="must hold a ViM-UNet.*got weights named bias, weight"):
        read_checkpoint(save(tmp_path / "best.pt", other))
    del unet_state["base.block.1.bias"]
    with pytest.raises(
        ValueError, match=r"1 weights of .*`base.block.1.bias` must have shape \(16"
    ):
        read_checkpoint(save(tmp_path / "best.pt", unet_state))
