"""Images with labels, wherever they come from.

Every source (`folder`, `livecell`, `cremi`, `isic`, `synapse`) is a list of `Sample`;
`crops.RandomCrops` turns such a list into a training set and evaluation walks over it. Nothing here
knows a network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """One image with its labels, read when it is needed.

    Attributes:
        name: How the sample is called in tables and messages.
        read: Function without arguments that returns image and labels: image (y, x) or
            (y, x, c) of any dtype, labels (y, x) integer with 0 = background, or None. It can be
            pickled, so that worker processes can read too.
    """

    name: str
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]]
