"""Model files: what is saved comes back, and nothing else is accepted."""

import json
import pickle
import re
import stat
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic
from vimunet.segmentation import model_file
from vimunet.segmentation.model_file import TrainedModel, embedded_models, load_model, save_model


@pytest.fixture
def model():
    network = build_model("unet", in_channels=2, out_channels=3, features=4, depth=2)
    info = {"training_data": "discs", "licence": "CC0", "iteration": 7, "val_mSA": None}
    return TrainedModel(network, Distances(center_threshold=0.3), info=info)


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "discs.safetensors"
    save_model(path, model)
    return path


def rewrite(path, header=None, tensors=None):
    """Write the file again with some header entries or tensors replaced, or removed if None."""
    with safe_open(path, framework="pt") as opened:
        entries = dict(opened.metadata())
        weights = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    for old, new in ((entries, header or {}), (weights, tensors or {})):
        for name, value in new.items():
            old.pop(name, None)
            if value is not None:
                old[name] = value
    save_file(weights, path, metadata=entries)


def test_everything_comes_back(model, file):
    loaded = load_model(file)
    assert loaded.network.config == model.network.config
    assert (loaded.representation, loaded.normalization) == (model.representation, "image")
    assert loaded.info == model.info
    wanted, found = model.network.state_dict(), loaded.network.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("representation", [Semantic(foreground_threshold=0.3), Semantic(5)])
def test_classes_come_back(tmp_path, representation):
    maps = len(representation.channels)
    network = build_model("unet", out_channels=maps, features=4, depth=2)
    save_model(tmp_path / "classes.safetensors", TrainedModel(network, representation))
    loaded = load_model(tmp_path / "classes.safetensors")
    assert loaded.representation == representation


def test_loaded_network_is_in_eval_mode_and_computes_the_same(model, file):
    model.network.train()
    network = load_model(file).network
    assert not any(module.training for module in network.modules())
    image = torch.randn(1, 2, 16, 24)
    assert torch.equal(network(image), model.network.eval()(image))


def test_saving_leaves_the_network_alone(model, tmp_path):
    network = model.network.to(memory_format=torch.channels_last).train()
    before = {name: (t.clone(), t.stride()) for name, t in network.state_dict().items()}
    save_model(tmp_path / "a.safetensors", model)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


class _Odd(nn.Module):
    """Has what a file of plain tensors cannot hold as it is: buffers, one memory for two tensors,
    another memory layout.
    """

    config = {"model": "odd", "model_args": {}}

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)


def test_buffers_shared_and_transposed_tensors_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "build_model", lambda name, **_: _Odd())
    network = _Odd()
    network.norm(torch.randn(4, 3, 5, 5) * 3 + 1)
    assert not network.conv.weight.is_contiguous()
    path = tmp_path / "odd.safetensors"
    save_model(path, TrainedModel(network, Boundaries()))
    found = load_model(path).network.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert found["norm.running_var"].mean() > 1.5  # 0.9 * 1 + 0.1 * variance 9
    assert found["norm.num_batches_tracked"] == 1


def test_half_precision_is_stored_as_such_and_widened(model, tmp_path):
    save_model(tmp_path / "full.safetensors", model)
    model.network.half()
    save_model(tmp_path / "half.safetensors", model)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = load_model(tmp_path / "half.safetensors").network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


def test_header_can_be_read_by_any_tool(file):
    with safe_open(file, framework="np") as opened:
        header = {name: json.loads(value) for name, value in opened.metadata().items()}
    assert header["model"] == "unet"
    assert header["model_args"] == {
        "in_channels": 2, "out_channels": 3, "features": 4, "depth": 2
    }  # fmt: skip
    assert header["representation"]["center_threshold"] == 0.3
    assert header["info"]["licence"] == "CC0"


def test_failed_save_keeps_the_old_file(model, file, monkeypatch):
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(model_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(file, model)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_file_is_as_readable_as_any_other(file):
    other = file.with_name("other.txt")
    other.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_folder_is_made(model, tmp_path):
    save_model(tmp_path / "new" / "folder" / "a.safetensors", model)
    load_model(str(tmp_path / "new" / "folder" / "a.safetensors"))


def test_save_names_what_is_wrong(model, tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in \.safetensors, got .*model\.pt"):
        save_model(tmp_path / "model.pt", model)
    stranger = TrainedModel(nn.Conv2d(1, 2, 3), Boundaries())
    with pytest.raises(ValueError, match="got a Conv2d without `config`"):
        save_model(tmp_path / "a.safetensors", stranger)
    with pytest.raises(ValueError, match=r"`model\.info` must be made of JSON values"):
        save_model(
            tmp_path / "a.safetensors",
            TrainedModel(model.network, model.representation, info={"tensor": torch.ones(1)}),
        )
    assert not list(tmp_path.iterdir())


def test_missing_file_lists_the_others(file):
    with pytest.raises(FileNotFoundError, match=r"No model file .*nuclei.*: discs\.safetensors\."):
        load_model(file.with_name("nuclei.safetensors"))
    with pytest.raises(FileNotFoundError, match="There is no folder .*elsewhere either"):
        load_model(file.parent / "elsewhere" / "nuclei.safetensors")
    with pytest.raises(FileNotFoundError, match=r"got the folder .*\. Model files in .*: discs\.s"):
        load_model(file.parent)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_model(path)
    assert not tmp_path.joinpath("exploded").exists()


def test_truncated_file(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_model(file)


def test_weights_of_another_tool(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="lacks format, model, model_args, .*It has: nothing"):
        load_model(path)


@pytest.mark.parametrize("name", ["format", "model", "representation", "normalization", "info"])
def test_missing_entry_is_named(file, name):
    rewrite(file, header={name: None})
    with pytest.raises(ValueError, match=f"its header lacks {name}\\. It has: "):
        load_model(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": '"vimunet 99"'}, "must have format 'vimunet 1', got 'vimunet 99'"),
        ({"model": '"vim_x"'}, "Unknown model 'vim_x'"),
        ({"model_args": '{"wings": 2}'}, "Unknown option 'wings'"),
        ({"representation": '{"name": "stars"}'}, "Unknown representation 'stars'"),
        ({"info": "{"}, "damaged header"),
    ],
)
def test_wrong_entry_is_named(file, header, message):
    rewrite(file, header=header)
    with pytest.raises(ValueError, match=message):
        load_model(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"out_conv.bias": None}, "out_conv.bias is missing"),
        ({"extra": torch.ones(1)}, "extra is not part of it"),
        ({"out_conv.bias": torch.ones(1)}, r"out_conv.bias has shape \(1,\) instead of \(3,\)"),
    ],
)
def test_tensors_must_fit_exactly(file, tensors, message):
    rewrite(file, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        load_model(file)


@pytest.fixture
def shelf(file, tmp_path, monkeypatch):
    """The model of these tests, as if it came with the package."""
    folder = tmp_path / "weights"
    folder.mkdir()
    model = load_model(file)
    save_model(
        folder / "discs.safetensors", replace(model, info={**model.info, "purpose": "round things"})
    )
    monkeypatch.setattr(model_file, "WEIGHTS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_embedded_models_have_a_name_and_a_purpose(shelf):
    assert embedded_models() == {"discs": "round things"}
    assert load_model("discs").info["purpose"] == "round things"


def test_a_file_of_that_name_comes_first(shelf, model):
    save_model(shelf / "other.safetensors", replace(model, representation=Distances()))
    (shelf / "other.safetensors").rename("discs")
    assert load_model("discs").representation == Distances()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("disks", "No model 'disks'. Known: discs, or the path of a model file"),
        ("disks.safetensors", "Model files in .: discs.safetensors."),
        ("weights/discs", "Model files in weights: discs.safetensors."),
    ],
)
def test_unknown_names_list_what_there_is(shelf, name, message):
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_model(name)
