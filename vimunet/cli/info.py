"""`vimunet info`: what is installed and what runs where."""

import argparse
import sys
from importlib import metadata, util

from vimunet.cli.messages import known_models

OPTIONAL_PACKAGES = {
    "lightning-fabric": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "pycocotools": "train",
    "nibabel": "benchmark",
    "roifile": "benchmark",
    "mamba-ssm": "cuda",
    "causal-conv1d": "cuda",
    "napari": "napari",
    "z5py": "n5",
    "monai": "monai",
    "torch-em": "torch-em",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print what is installed and what runs where."""
    import torch

    import vimunet
    from vimunet.models import MODELS
    from vimunet.models.scan import active_backend
    from vimunet.segmentation.devices import choose_device

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"vimunet {vimunet.__version__}")
    print(f"python  {sys.version.split()[0]}")
    print(f"torch   {torch.__version__}, {torch.get_num_threads()} threads")
    print("\ndevices and the code that runs the selective scan there")
    for device in devices:
        name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
        chosen = " [auto]" if torch.device(device).type == choose_device().type else ""
        backend, why = active_backend(device)
        print(f"  {device}{name}{chosen}: {backend}. {why}")
    compiled = util.find_spec("vimunet._kernels") is not None
    print(f"  compiled kernels (`vimunet._kernels`): {'built' if compiled else 'not built'}")
    print(f"\n{known_models()}")
    print("\nnetworks to train")
    for name, build in MODELS.items():
        function, fixed = getattr(build, "func", build), getattr(build, "keywords", {})
        sizes = ", ".join(f"{key} {value}" for key, value in fixed.items())
        summary = (function.__doc__ or "").strip().splitlines()[0].removeprefix("Build a ")
        print(f"  {name:<10} {summary}{f' ({sizes})' if sizes else ''}")
    print("\noptional packages")
    for package, extra in OPTIONAL_PACKAGES.items():
        try:
            state = metadata.version(package)
        except metadata.PackageNotFoundError:
            state = f"not installed (pip install 'vimunet[{extra}]')"
        print(f"  {package:<16} {state}")
    return 0
