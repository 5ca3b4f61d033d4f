"""What is known about each result, and for how long.

A `Segmentation` belongs to one layer of labels in a viewer. It remembers where the labels come from
(planes, model, thresholds) and what was written, so that labels that were found can be told from
corrected ones, which are never replaced. Maps are kept in a `MapCache` of limited size.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vimunet.axes import Box
from vimunet.interactive.models import load_plane_model
from vimunet.interactive.planes import Planes
from vimunet.interactive.prediction import PlaneMaps, PredictionOptions
from vimunet.io.image import Index

if TYPE_CHECKING:
    from vimunet.representations import Representation
    from vimunet.segmentation.model_file import TrainedModel

MAP_CACHE_BYTES = 1 << 30
"""Memory for the maps of all results together; the ones used longest ago are dropped first."""


@dataclass
class PlaneState:
    """What was written into one plane of a layer.

    Attributes:
        representation: The thresholds that were used.
        digest: Of the labels as they were written.
        numbers: Of objects, which no other plane gets.
        objects: How many objects were found (for classes: how many besides background).
        touched: Whether the labels were edited since.
    """

    representation: "Representation"
    digest: bytes
    numbers: range
    objects: int
    touched: bool = False

    def emptied(self, labels: NDArray[Any]) -> "PlaneState":
        """Describe the same plane without objects; `labels` are its zeros."""
        return replace(self, digest=_digest(labels), numbers=range(0), objects=0, touched=False)

    def corrected(self, labels: NDArray[Any]) -> "PlaneState":
        """Describe the same plane after it was edited; `labels` are what it holds now."""
        stop = max(self.numbers.stop, int(labels.max(initial=0)) + 1)
        return replace(self, numbers=range(self.numbers.start, stop), touched=True)


@dataclass(eq=False)
class Segmentation:
    """Where the labels of a layer come from.

    Attributes:
        planes: The image.
        box: The part of each plane that was segmented.
        model_name: As it was chosen.
        model: What was loaded.
        options: How its network was run.
        states: What was written, for each plane that was segmented.
    """

    planes: Planes
    box: Box
    model_name: str
    model: "TrainedModel"
    options: PredictionOptions
    states: dict[Index, PlaneState] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the model for people."""
        return Path(self.model_name).stem

    @property
    def labels_shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return (*self.planes.leading, *(part.stop - part.start for part in self.box))

    def fits(self, other: "Segmentation") -> bool:
        """Tell whether the planes of `other` belong into the same layer."""
        return (
            self.planes.is_like(other.planes)
            and self.box == other.box
            and self.model is other.model
            and self.options == other.options
        )

    def is_corrected(self, index: Index, labels: NDArray[Any]) -> bool:
        """Tell whether a plane holds labels that were not written by `write`.

        Args:
            index: The plane.
            labels: (y, x) what the layer holds there now.
        """
        state = self.states.get(index)
        if state is None:
            return bool(labels.any())
        return state.touched or state.digest != _digest(labels)

    def write(
        self,
        index: Index,
        labels: NDArray[Any],
        representation: "Representation",
        data: NDArray[Any],
    ) -> None:
        """Put the labels of one plane into the data of the layer.

        Objects of different planes get different numbers, classes keep theirs.

        Args:
            index: The plane.
            labels: (y, x) int32 labels, 0 background, 1..n (or classes).
            representation: The thresholds with which they were found.
            data: (..., y, x) data of the layer, changed in place.
        """
        highest = int(labels.max(initial=0))
        if representation.labels_are_classes:
            numbers = range(1, highest + 1)
            objects = int(np.unique(labels[labels > 0]).size)
        else:
            numbers = self._reserve(index, highest)
            objects = highest
            labels = np.where(labels > 0, labels + (numbers.start - 1), 0)
        data[index] = labels
        self.states[index] = PlaneState(representation, _digest(data[index]), numbers, objects)

    def _reserve(self, index: Index, count: int) -> range:
        """Find numbers for `count` objects that no other plane has: those from before, or new."""
        others = [state.numbers for i, state in self.states.items() if i != index]
        before = self.states.get(index)
        if before is not None and count <= len(before.numbers):
            mine = before.numbers
            if all(mine.stop <= other.start or other.stop <= mine.start for other in others):
                return mine
        start = max((other.stop for other in others), default=1)
        return range(start, start + count)


class MapCache:
    """Maps of planes, dropped in the order of their last use once they need too much memory.

    For one thread alone, that of the viewer.

    Args:
        limit: Most memory in bytes. The maps added last always stay.
    """

    def __init__(self, limit: int = MAP_CACHE_BYTES):
        self.limit = limit
        self._maps: OrderedDict[tuple[int, Index], PlaneMaps] = OrderedDict()

    def put(self, segmentation: Segmentation, index: Index, maps: PlaneMaps) -> None:
        """Keep the maps of a plane, in the place of earlier ones."""
        self._maps[id(segmentation), index] = maps
        self._maps.move_to_end((id(segmentation), index))
        while len(self._maps) > 1 and self.nbytes > self.limit:
            self._maps.popitem(last=False)

    def get(self, segmentation: Segmentation, index: Index) -> PlaneMaps | None:
        """Give the maps of a plane, or None if they were dropped or never made."""
        maps = self._maps.get((id(segmentation), index))
        if maps is not None:
            self._maps.move_to_end((id(segmentation), index))
        return maps

    def copy(self, source: Segmentation, target: Segmentation) -> None:
        """Give `target` the maps of `source` too."""
        for (owner, index), maps in list(self._maps.items()):
            if owner == id(source):
                self._maps[id(target), index] = maps

    def forget(self, segmentation: Segmentation) -> None:
        """Drop all maps of a result."""
        for key in [key for key in self._maps if key[0] == id(segmentation)]:
            del self._maps[key]

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes; maps that two results share count once."""
        return sum({id(maps): maps.nbytes for maps in self._maps.values()}.values())


class Session:
    """The results and models of one viewer.

    Attributes:
        maps: The maps of the results.
    """

    def __init__(self) -> None:
        self.maps = MapCache()
        self._tuned: dict[str, tuple[TrainedModel, Representation]] = {}
        self._of_layer: WeakKeyDictionary[Any, Segmentation] = WeakKeyDictionary()
        self._loaded: dict[str, tuple[tuple[int, int], TrainedModel]] = {}

    def segmentation(self, layer: Any) -> Segmentation | None:
        """Tell where the labels of a layer come from; None if that is not known."""
        return None if layer is None else self._of_layer.get(layer)

    def source(self, layer: Any) -> Segmentation:
        """Tell where the labels of a layer that was remembered come from."""
        segmentation = self._of_layer.get(layer)
        assert segmentation is not None, f"{layer} was not remembered"
        return segmentation

    def remember(self, layer: Any, segmentation: Segmentation) -> None:
        """Connect a layer with where its labels come from."""
        self._of_layer[layer] = segmentation

    def forget(self, layer: Any) -> None:
        """Free the memory of a layer that was removed."""
        segmentation = self._of_layer.pop(layer, None)
        if segmentation is not None:
            self.maps.forget(segmentation)

    def thresholds(self, segmentation: Segmentation) -> "Representation":
        """Give the thresholds to use now: those the user set last, or else the model's.

        A model file that was changed since, and loaded again, is another model.
        """
        loaded = segmentation.model
        model, tuned = self._tuned.get(segmentation.model_name, (loaded, loaded.representation))
        return tuned if model is loaded else loaded.representation

    def set_thresholds(self, segmentation: Segmentation, representation: "Representation") -> None:
        """Use these thresholds from now on, with the model of a result: the user wants them."""
        self._tuned[segmentation.model_name] = (segmentation.model, representation)

    def load_model(self, choice: str) -> "TrainedModel":
        """Load an embedded model by its name, or a file by its path.

        What was loaded before is taken again unless the file changed. May be called from any
        thread, but the network is for one task at a time: predicting moves it between devices,
        and makes it stop when the task is cancelled.

        Raises:
            FileNotFoundError: See `load_plane_model`.
            ValueError: See `load_plane_model`.
        """
        stamp = (0, 0)
        if Path(choice).is_file():
            status = Path(choice).stat()
            stamp = (status.st_mtime_ns, status.st_size)
        known = self._loaded.get(choice)
        if known is None or known[0] != stamp:
            known = (stamp, load_plane_model(choice))
            self._loaded[choice] = known
        return known[1]


def _digest(labels: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(labels).data, digest_size=16).digest()
