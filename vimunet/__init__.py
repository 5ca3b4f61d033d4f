"""Segment cells and neurites in microscopy images with Vision-Mamba networks.

An image becomes maps (a network predicts them), maps become labels (their representation reads
them); `vimunet.representations` is the one place that knows what each map means, in both
directions, in two and three dimensions.

The public names are those of `__init__.pyi`. Each is loaded from its module on first use, so that
`import vimunet` stays cheap.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

from vimunet.deprecation import find_old_modules

try:
    __version__ = version("vimunet")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
find_old_modules()
