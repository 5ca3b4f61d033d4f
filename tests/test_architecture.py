"""The picture of who may import whom, read from the sources, and what three usual changes touch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from vimunet.io.formats import READERS
from vimunet.models import MODELS
from vimunet.representations import REPRESENTATIONS, build_representation

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vimunet"

# A room may use the rooms of the floors below its own, never the reverse.
FLOORS = (
    {"axes", "deprecation", "labels", "messages", "units"},
    {"io", "models", "overlay", "protocol", "representations"},
    {"bridges", "datasets", "scores"},
    {"objects", "segmentation"},
    {"blockwise", "training"},
    {"comparison", "interactive"},
    {"cli"},
    {"__main__"},
)
MOST_ARROWS = 65
"""Between the rooms of the library, the command line aside."""


def room(path: Path) -> str:
    """Name the module or subpackage of vimunet that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """List the modules, or names in them, of vimunet that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith("vimunet."))


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if room(path) != "__init__")
FLOOR = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = room(path)
    rooms = {name.split(".")[1] for name in imported(path)} - {own, "__version__"}
    upward = {name for name in rooms if FLOOR[name] >= FLOOR[own]}
    assert not upward, f"{path.relative_to(ROOT)} must not import {sorted(upward)}"


def test_modules_need_each_other_in_one_order():
    modules = {module(path) for path in SOURCES}
    needs = {
        module(path): {
            name if name in modules else name.rpartition(".")[0] for name in imported(path)
        }
        & modules - {module(path)}
        for path in SOURCES
        if path.name != "__init__.py"
    }
    TopologicalSorter(needs).prepare()  # raises CycleError


def test_rooms_know_few_others():
    arrows = {
        (room(path), name.split(".")[1])
        for path in SOURCES
        if FLOOR[room(path)] < FLOOR["cli"]
        for name in imported(path)
    }
    arrows = sorted(arrow for arrow in arrows if len({*arrow, "__version__"}) == 3)
    print(f"{len(arrows)} arrows between the rooms:")
    for start, end in arrows:
        print(f"  {start} -> {end}")
    assert len(arrows) <= MOST_ARROWS


def test_nothing_imports_experiments_or_tests():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                first = node.module.split(".")[0]
                assert first not in {"experiments", "tests", "benchmarks", "napari_vimunet"}, path


def test_import_is_light_and_silent():
    code = (
        "import sys, vimunet; "
        "print(','.join(m for m in ('torch', 'numpy', 'skimage', 'scipy', 'h5py', 'zarr',"
        " 'matplotlib', 'pooch', 'lightning_fabric', 'napari') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""
    assert done.stderr == ""


# What is added to: a file for the new thing, and a line in the table of its kind. So nobody else
# may know what is in the table.


def who_imports(folder: str, names: set[str]) -> set[str]:
    """List the sources outside of a room that import one of some names from it."""
    return {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if room(path) != folder
        and any(name.startswith(f"vimunet.{folder}.") for name in imported(path))
        and any(name.rpartition(".")[2] in names for name in imported(path))
    }


def test_a_network_is_one_file_and_one_line():
    with_torch = {build.__module__ for build in map(builder, MODELS.values())}
    files = {name.removeprefix("vimunet.models.") for name in with_torch}
    assert files <= {path.stem for path in (PACKAGE / "models").glob("*.py")}
    users = who_imports("models", {class_name for name in files for class_name in classes(name)})
    assert {user.split("/")[0] for user in users} <= {"bridges"}, users


def builder(entry: object) -> object:
    """Return the function or class behind an entry of a table of builders."""
    return getattr(entry, "func", entry)


def classes(name: str) -> set[str]:
    tree = ast.parse((PACKAGE / "models" / f"{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_a_representation_is_one_file_and_one_line():
    kinds = {type(build_representation(name)) for name in REPRESENTATIONS}
    for kind in kinds:
        assert Path(sys.modules[kind.__module__].__file__).parent.name == "representations"
    users = who_imports("representations", {kind.__name__ for kind in kinds})
    # nnU-Net's classes are foreground and boundaries, painted
    assert {user.rpartition("/")[0] for user in users} <= {"bridges/nnunet"}, users


def test_a_file_format_is_one_file_and_one_line():
    openers = {reader.__name__ for reader in READERS.values()}
    assert who_imports("io", openers) == set()
    inside = {
        path.name
        for path in (PACKAGE / "io").glob("*.py")
        if any(name.rpartition(".")[2] in openers for name in imported(path))
    }
    assert inside == {"formats.py"}
