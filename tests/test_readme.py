"""What the README tells a newcomer to type is what the project accepts."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import vimunet
from vimunet.cli import parse
from vimunet.representation import Boundaries

ROOT = Path(__file__).resolve().parents[1]
MODELS_PAGE = ROOT / "docs" / "models.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    ROOT / "napari_plugin" / "README.md",
    MODELS_PAGE,
]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip()
    for document in DOCUMENTS
    for block in blocks(document, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("vimunet ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    assert parse(shlex.split(command)[1:]).run


def test_there_are_commands():
    assert {shlex.split(command)[1] for command in COMMANDS} >= {"segment", "train", "evaluate"}


def test_python_example_runs(tmp_path, monkeypatch, rng):
    network = vimunet.build_model("unet", features=4)
    vimunet.save_model(
        tmp_path / "model.safetensors", vimunet.TrainedModel(network.eval(), Boundaries())
    )
    tifffile.imwrite(tmp_path / "image.tif", rng.integers(0, 255, (40, 50), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    assert tifffile.imread("labels.tif").shape == (40, 50)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_exist(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_every_model_is_documented():
    for name in vimunet.MODELS:
        assert f"`{name}`" in (ROOT / "README.md").read_text()
        assert f"| `{name}` |" in MODELS_PAGE.read_text()


ROWS = re.findall(r"^\| `(\w+)` \|(.*?)\| ([\d,]+) \|.*\| (.*?) \|$", MODELS_PAGE.read_text(), re.M)


@pytest.mark.parametrize(("name", "options", "parameters", "sides"), ROWS)
def test_sizes_of_models_are_as_documented(name, options, parameters, sides):
    if name == "swin_unetr":
        pytest.importorskip("monai")
    options = eval(f"dict({options.replace('`', '')})")
    with torch.device("cpu" if name == "swin_unetr" else "meta"):
        network = vimunet.build_model(name, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == int(
        parameters.replace(",", "")
    )
    limit = "any" if network.max_size is None else f"any, up to {network.max_size}"
    assert sides == (limit if network.stride == 1 else str(network.stride))


@pytest.mark.parametrize(
    "script",
    ["livecell/train.py", "cremi/train.py", "isic/train.py", "synapse/train.py", "demo.py"],
)
def test_experiments_named_in_the_documents_exist(script):
    assert (ROOT / "experiments" / script).exists()
