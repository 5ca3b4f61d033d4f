"""A representation of a tool's own, in one file: unit vectors that point to the centre of objects.

Not tests: what tests/test_new_representation.py adds to the registry and drives through everything.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from vimunet.axes import relative_spacing, spatial_axes
from vimunet.representations import Representation, Tunable, turned_vectors
from vimunet.representations.watershed import remove_small

STEPS = 40
"""In which each pixel walks to the centre of its object."""


@dataclass(frozen=True)
class Flows(Representation):
    """The direction to the centre of the object, one signed map for each axis; 0 outside.

    Attributes:
        ndim: 2 or 3.
        threshold: Pixels with a shorter vector are background.
        min_size: Objects with fewer pixels are dropped.
    """

    ndim: int = 2
    threshold: float = 0.5
    min_size: int = 20

    name: ClassVar[str] = "flows"
    title: ClassVar[str] = "flows to the centres"

    @property
    def axes(self):
        return (spatial_axes(self.ndim),)

    @property
    def channels(self):
        return tuple(f"flow_{axis}" for axis in self.axes[0])

    @property
    def ranges(self):
        return ((-1.0, 1.0),) * self.ndim

    @property
    def tunable(self):
        hint = "Lower: more and larger objects"
        return (
            Tunable("threshold", "Least flow", hint, 0, 1, 0.01, grid=(0.3, 0.5, 0.7)),
            Tunable("min_size", "Smallest object", "Smaller ones are dropped", 0, 1000, 1),
        )

    def encode(self, labels, spacing=None):
        labels = self._checked_labels(labels)
        sizes = np.reshape(relative_spacing(spacing, labels.ndim), (-1, *[1] * labels.ndim))
        maps = np.zeros((labels.ndim, *labels.shape), np.float32)
        places = np.indices(labels.shape)
        for number in np.unique(labels[labels > 0]):
            mask = labels == number
            center = places[:, mask].mean(axis=1).reshape(-1, *[1] * labels.ndim)
            steps = (center - places) * sizes
            length = np.linalg.norm(steps, axis=0)
            maps[:, mask] = (steps / np.maximum(length, 1e-6))[:, mask]
        return maps

    def decode(self, maps, spacing=None):
        maps = self._checked_maps(maps)
        inside = np.linalg.norm(maps, axis=0) > self.threshold
        inside = ndimage.binary_fill_holes(inside)
        places = np.argwhere(inside).T.astype(float)
        most = np.reshape(inside.shape, (-1, 1)) - 1
        for _ in range(STEPS):
            flow = maps[(slice(None), *np.rint(places).astype(int))]
            places = np.clip(places + flow, 0, most)
        ends = tuple(np.rint(places).astype(int))
        visits = np.zeros(inside.shape, bool)
        visits[ends] = True
        clusters, _ = ndimage.label(ndimage.binary_dilation(visits))
        labels = np.zeros(inside.shape, np.int32)
        labels[inside] = clusters[ends]
        return remove_small(labels, self.smallest(spacing, labels.ndim))

    def activate(self, logits):
        return logits.float().tanh()

    def loss(self, logits, target):
        return (logits.float().tanh() - target).square().mean()

    def turned(self, maps, turn):
        return turned_vectors(maps, turn)
