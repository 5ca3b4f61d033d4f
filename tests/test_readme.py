"""What the README tells a newcomer to type is what the project accepts."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import vimunet
from vimunet.axes import shown
from vimunet.cli import parse

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
    tifffile.imwrite(tmp_path / "image.tif", rng.integers(0, 255, (40, 50), dtype=np.uint8))
    tifffile.imwrite(tmp_path / "annotated.tif", rng.integers(0, 3, (40, 50), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    defined: dict = {}
    exec(compile(example, "README.md", "exec"), defined)
    assert tifffile.imread("labels.tif").shape == (40, 50)
    assert {"label", "area_px2", "mean_intensity"} <= defined["table"].keys()
    assert 0 <= defined["scores"]["mSA"] <= 1


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
    limit = "any" if network.max_size is None else f"any, up to {network.max_size[0]}"
    assert sides == (limit if network.stride == (1, 1) else shown(network.stride))


@pytest.mark.parametrize(
    "script",
    ["livecell/train.py", "cremi/train.py", "isic/train.py", "synapse/train.py", "demo.py"],
)
def test_experiments_named_in_the_documents_exist(script):
    assert (ROOT / "experiments" / script).exists()


# --- the three changes that CONTRIBUTING shows ----------------------------------------------------

EXAMPLES = (ROOT / "CONTRIBUTING.md").read_text()


def example(title: str) -> tuple[str, dict, str]:
    """Return the path of the new file, what is defined in it, and the line for the table."""
    section = EXAMPLES.split(f"## Add a {title}\n")[1].split("\n## ")[0]
    path = re.search(r"A file and a line\. `(.*?)`|a file and a line\. `(.*?)`", section)
    file, line, *others = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert not others
    defined: dict = {"__name__": "example"}
    exec(compile(file, title, "exec"), defined)
    return next(filter(None, path.groups())), defined, line.strip().rstrip(",")


@pytest.mark.parametrize("title", ["network", "representation", "file format"])
def test_changes_that_contributing_shows_are_a_file_and_a_line(title, tmp_path, monkeypatch):
    path, defined, line = example(title)
    assert not (ROOT / path).exists()
    assert (ROOT / path).parent.is_dir()
    home = importlib.import_module(
        {
            "network": "vimunet.models",
            "representation": "vimunet.representations",
            "file format": "vimunet.io.formats",
        }[title]
    )
    table = {
        "network": vimunet.MODELS,
        "representation": vimunet.REPRESENTATIONS,
        "file format": getattr(home, "READERS", None),
    }[title]
    ((name, value),) = eval(f"{{{line}}}", defined).items()
    monkeypatch.setitem(table, name, value)
    if title == "network":
        network = vimunet.build_model(name, 3, 1, kernel_size=3)
        model = vimunet.TrainedModel(network, vimunet.Boundaries(foreground=False))
        vimunet.save_model(tmp_path / "a.safetensors", model)
        assert vimunet.predict(
            np.eye(20), vimunet.load_model(tmp_path / "a.safetensors")
        ).shape == (1, 20, 20)
    elif title == "representation":
        labels = np.zeros((20, 30), int)
        labels[2:8, 3:9], labels[12:18, 3:9] = 5, 9
        spots = vimunet.build_representation(name, min_size=3)
        found = spots.decode(spots.encode(labels))
        assert vimunet.evaluate(found, labels)["mSA"] == 1
        parse(
            shlex.split(
                f"train --images a --labels b --output c --model unet --representation {name}"
            )
        )
    else:
        pixels = np.arange(24).reshape(4, 6)
        np.savez(tmp_path / "a.npz", pixels)
        np.testing.assert_array_equal(home.read_image(tmp_path / "a.npz"), pixels)
        (tmp_path / "b.npz").write_bytes(b"damaged")
        with pytest.raises(ValueError, match=r"Cannot read .*b\.npz"):
            home.read_image(tmp_path / "b.npz")
