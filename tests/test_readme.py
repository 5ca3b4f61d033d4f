"""What the README tells a newcomer to type is what the project accepts."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile

import vimunet
from vimunet.cli import _parser
from vimunet.representation import Boundaries

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "experiments" / "README.md"]


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
    assert _parser().parse_args(shlex.split(command)[1:]).run


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


@pytest.mark.parametrize(
    "script",
    ["livecell/train.py", "cremi/train.py", "isic/train.py", "synapse/train.py", "demo.py"],
)
def test_experiments_named_in_the_documents_exist(script):
    assert (ROOT / "experiments" / script).exists()
