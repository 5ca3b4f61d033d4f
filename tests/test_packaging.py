"""What a newcomer installs: pyproject, the conda environment, licences and samples agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bounds(requirements: list[str]) -> dict[str, str]:
    """Map each package name to its version bound, as written."""
    pairs = (re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", entry) for entry in requirements)
    return {match[1]: match[2] for match in pairs if match}


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = bounds([entry for entry in environment["dependencies"] if isinstance(entry, str)])
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]

    assert conda["python"] == PROJECT["requires-python"]
    assert conda["pytorch"] == bounds(PROJECT["dependencies"])["torch"]
    (editable,) = pip
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable)
    assert extras
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


def test_base_install_is_small():
    base = set(bounds(PROJECT["dependencies"]))
    assert base == {
        "torch",
        "numpy",
        "scipy",
        "scikit-image",
        "pillow",
        "bioimage-cpp",
        "tifffile",
        "imagecodecs",
        "h5py",
        "jinja2",
        "lazy-loader",
        "zarr",
        "safetensors",
        "pooch",
        "requests",
        "tqdm",
    }


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("kind", ["nuclei", "phase", "neurites"])
def test_samples_are_paired_and_named_in_the_notice(samples, kind):
    assert f"`{kind}`" in (samples / "NOTICE.md").read_text()
    for split in ("train", "test"):
        images = {path.stem for path in (samples / kind / split / "images").iterdir()}
        labels = {path.stem for path in (samples / kind / split / "labels").iterdir()}
        assert images == labels
        assert images


def test_samples_stay_under_3_megabytes(samples):
    assert sum(path.stat().st_size for path in samples.rglob("*") if path.is_file()) < 3e6
