"""Segment cells and neurites in microscopy images with Vision-Mamba networks.

An image becomes maps (a network predicts them), maps become labels (a watershed reads them);
`vimunet.representation` is the one place that knows what each map means, in both directions.

The names below are the public interface. Each is loaded from its module on first use, so that
`import vimunet` stays cheap.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel, embedded_models, load_model, save_model
    from vimunet.evaluation import evaluate
    from vimunet.models import MODELS, build_model
    from vimunet.prediction import predict, segment

__all__ = [
    "MODELS",
    "TrainedModel",
    "__version__",
    "build_model",
    "embedded_models",
    "evaluate",
    "load_model",
    "predict",
    "save_model",
    "segment",
]

_HOME = {
    "MODELS": "vimunet.models",
    "TrainedModel": "vimunet.checkpoint",
    "build_model": "vimunet.models",
    "embedded_models": "vimunet.checkpoint",
    "evaluate": "vimunet.evaluation",
    "load_model": "vimunet.checkpoint",
    "predict": "vimunet.prediction",
    "save_model": "vimunet.checkpoint",
    "segment": "vimunet.prediction",
}

try:
    __version__ = version("vimunet")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vimunet' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
