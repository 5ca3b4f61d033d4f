"""Old names that keep working for one version, with a warning. To be emptied with version 0.3."""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

MODULES: dict[str, tuple[str, ...]] = {
    "checkpoint": ("segmentation.model_file",),
    "data": ("io.pairs",),
    "data.augmentation": ("training.augmentation",),
    "data.crops": ("training.crops", "segmentation.normalization"),
    "data.cremi": ("datasets.cremi",),
    "data.download": ("datasets.download",),
    "data.folder": ("io.formats", "io.names", "io.pairs"),
    "data.isic": ("datasets.isic",),
    "data.livecell": ("datasets.livecell",),
    "data.synapse": ("datasets.synapse",),
    "evaluation": (
        "scores.folders",
        "scores.objects",
        "scores.statistics",
        "io.tables",
        "training.tuning",
    ),
    "files": ("io.atomic",),
    "label_files": ("io.label_files",),
    "losses": ("representations.losses",),
    "matching": ("scores.matching", "labels"),
    "measurement": ("objects.measurement",),
    "postprocessing": ("representations.watershed",),
    "prediction": (
        "segmentation.predict",
        "segmentation.segment",
        "segmentation.devices",
        "segmentation.normalization",
        "segmentation.tiling",
    ),
    "representation": ("representations",),
    "semantic_evaluation": ("scores.classes", "scores.folders"),
    "stitching": ("segmentation.stitching",),
    "training_files": ("training.run_folder",),
    "validation": ("training.validation",),
    "volumes": ("io.ome_zarr",),
}
"""Modules of version 0.1, and where their contents are now."""


def renamed(kind: str, given: Any, names: dict[str, str]) -> Any:
    """Give the new name of a value that had another one.

    Args:
        kind: What it is, for the warning.
        given: The value.
        names: Old -> new.

    Examples:
        >>> renamed("protocol", "fair", {"paper": "published"})
        'fair'
    """
    if given not in names:
        return given
    warn(f"{kind} {given!r}", repr(names[given]))
    return names[given]


def renamed_keyword(old: str, new: str) -> Callable[[Function], Function]:
    """Let a function take an argument by its old name too."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if old in options:
                warn(f"`{old}` of `{function.__name__}`", f"`{new}`")
                options[new] = options.pop(old)
            return function(*arguments, **options)

        return cast(Function, call)

    return decorate


def warn(old: str, new: str) -> None:
    """Say that an old name will go."""
    warnings.warn(
        f"{old} is now {new}; the old name works until version 0.3.", FutureWarning, stacklevel=3
    )


class OldModules(MetaPathFinder, Loader):
    """Finds the modules of version 0.1, which are empty and ask the new ones for their names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Describe an old module."""
        package, _, name = fullname.partition(".")
        if package != "vimunet" or name not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=name == "data")

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make it."""

    def exec_module(self, module: ModuleType) -> None:
        """Let it look for names in their new homes."""
        name = module.__name__.partition(".")[2]
        homes = [f"vimunet.{home}" for home in MODULES[name]]
        warn(f"Module `{module.__name__}`", " and ".join(f"`{home}`" for home in homes))

        def find(attribute: str) -> Any:
            for home in homes if not attribute.startswith("__") else ():
                found = importlib.import_module(home)
                if hasattr(found, attribute):
                    return getattr(found, attribute)
            raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


def moved(module: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module that is still there, for names that are elsewhere now.

    Args:
        module: Its name.
        homes: Module of each name.
    """

    def find(attribute: str) -> Any:
        if attribute not in homes:
            raise AttributeError(f"module {module!r} has no attribute {attribute!r}")
        warn(f"`{module}.{attribute}`", f"`{homes[attribute]}.{attribute}`")
        return getattr(importlib.import_module(homes[attribute]), attribute)

    return find


def find_old_modules() -> None:
    """Let old modules be imported."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())
