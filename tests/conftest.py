"""Fixtures that every test module shares."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The tests are small: one thread is faster than two that wait for each other on a busy machine.
torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Not tests; pytest would import them for their doctests.
collect_ignore = ["triton_compile.py", "torchvision_stub"]


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, so that a failing test fails again."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _fixed_torch_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real annotated images that lies beside the repository, not inside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images not found in {folder}")
    return folder


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the small real images that the package ships."""
    return Path(__file__).resolve().parents[1] / "vimunet" / "datasets" / "samples"
