"""Stands in for a torchvision that does not fit the installed torch and fails to import.

nnU-Net looks for a trainer in all of its modules, one of which imports timm and so torchvision,
of which nothing is called. With this folder on PYTHONPATH every name in torchvision is an empty
class.
"""

import enum
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Module(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        module.__version__ = "0"
        module.InterpolationMode = enum.Enum(
            "InterpolationMode", ["NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"]
        )


sys.meta_path.insert(0, _Finder())
