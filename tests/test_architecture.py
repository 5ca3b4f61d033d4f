"""The picture of who may import whom, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vimunet"

ALLOWED = {
    "__main__": {"cli"},
    "bridges": {
        "bridges",
        "data",
        "files",
        "matching",
        "messages",
        "models",
        "postprocessing",
        "representation",
    },
    "blockwise": {"checkpoint", "files", "prediction", "stitching", "volumes"},
    "checkpoint": {"files", "messages", "models", "representation"},
    "comparison": {
        "bridges",
        "comparison",
        "data",
        "evaluation",
        "files",
        "matching",
        "messages",
        "overlay",
        "postprocessing",
        "representation",
    },
    "data": {"data", "files", "messages", "volumes"},
    "evaluation": {"data", "files", "matching", "messages", "representation"},
    "files": set(),
    "label_files": {"files", "volumes"},
    "losses": {"representation"},
    "matching": set(),
    "measurement": {"evaluation", "files"},
    "messages": set(),
    "models": {"models"},
    "overlay": set(),
    "postprocessing": set(),
    "prediction": {"checkpoint", "data", "models", "representation"},
    "representation": {"postprocessing"},
    "semantic_evaluation": {"data", "evaluation", "representation"},
    "stitching": {"matching"},
    "training": {
        "checkpoint",
        "data",
        "losses",
        "models",
        "prediction",
        "representation",
        "training_files",
        "validation",
    },
    "training_files": {"checkpoint", "data", "files", "overlay", "representation"},
    "validation": {
        "checkpoint",
        "data",
        "evaluation",
        "losses",
        "messages",
        "prediction",
        "representation",
        "semantic_evaluation",
    },
    "volumes": set(),
}
# The command line may use everything; `vimunet/__init__` only lists the public names.
FREE = {"__init__", "cli"}


def room(path: Path) -> str:
    """Name the module or subpackage of vimunet that a source file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("vimunet.")}
    return rooms


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if room(path) not in FREE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_picture(path):
    forbidden = imported_rooms(path) - ALLOWED[room(path)] - {"__version__"}
    assert not forbidden, f"{path.relative_to(ROOT)} must not import {sorted(forbidden)}"


def test_nothing_imports_experiments_or_tests():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in {"experiments", "tests", "benchmarks"}, path


def test_import_is_light_and_silent():
    code = (
        "import sys, vimunet; "
        "print(','.join(m for m in ('torch', 'skimage', 'scipy', 'h5py', 'zarr', 'matplotlib',"
        " 'pooch', 'lightning_fabric', 'napari') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""
    assert done.stderr == ""
