"""Labels as TIFF files that keep scale, place and units; any program can read the numbers.

Zlib-compressed 16-bit TIFF, 32-bit where there are more objects, one page per slice. The size of a
pixel is in the resolution tags, all of the rest as JSON text in the description. `place_of_image`
reads what other programs wrote of it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from vimunet.io.atomic import replacing
from vimunet.io.formats import open_image
from vimunet.io.image import LazyImage
from vimunet.units import MICROMETRES

_MARK = "labels of vimunet"
LARGEST_CLASSIC = 2**32 - 2**25
"""Bytes that are sure to fit into a TIFF with offsets of 32 bits, however badly they compress."""

_MICROMETRES_PER_CENTIMETRE = MICROMETRES["centimeter"]


class Place(NamedTuple):
    """Where labels lie: one entry for each axis.

    Attributes:
        scale: Length of a pixel.
        translate: Where the first pixel is.
        units: Name of the unit, "pixel" or "micrometer" for example.
        axes: Name of the axis.
    """

    scale: tuple[float, ...]
    translate: tuple[float, ...]
    units: tuple[str, ...]
    axes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        ndim: int,
        scale: Sequence[float] | None = None,
        translate: Sequence[float] | None = None,
        units: Sequence[Any] | None = None,
        axes: Sequence[str] | None = None,
    ) -> "Place":
        """Fill what is not known."""
        return cls(
            tuple(float(length) for length in (scale if scale is not None else [1] * ndim)),
            tuple(float(place) for place in (translate if translate is not None else [0] * ndim)),
            tuple(str(unit) for unit in (units or ["pixel"] * ndim)),
            tuple(str(axis) for axis in (axes or ("tzyx"[-ndim:] if ndim <= 4 else [""] * ndim))),
        )

    def without(self, dropped: Sequence[int]) -> "Place":
        """Leave out axes."""
        kept = [axis for axis in range(len(self.scale)) if axis not in dropped]
        fields: Any = (tuple(field[axis] for axis in kept) for field in self)
        return Place(*fields)


def write_label_tiff(path: str | Path, labels: Any, place: Place | None = None) -> None:
    """Write labels, completely or not at all; an existing file is replaced.

    Args:
        path: File to write, ending in .tif or .tiff.
        labels: (..., y, x) integer labels, an array or anything indexed like one; read slice by
            slice. Leading axes of length 1 are left out.
        place: Where they lie.

    Raises:
        ValueError: If the file name has another ending, or a label is negative or does not fit
            into 32 bits.
        TypeError: If the labels are not integers.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"`path` must end in .tif or .tiff, got {path}.")
    if np.dtype(labels.dtype).kind not in "iu":
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    dropped = [axis for axis, length in enumerate(labels.shape[:-2]) if length == 1]
    kept = (Place.of(labels.ndim) if place is None else place).without(dropped)
    shape = tuple(length for axis, length in enumerate(labels.shape) if axis not in dropped)
    low = min(int(plane.min(initial=0)) for plane in _planes(labels))
    high = max(int(plane.max(initial=0)) for plane in _planes(labels))
    if low < 0 or high >= 2**32:
        raise ValueError(f"`labels` must lie in 0 ... {2**32 - 1}, got {low} ... {high}.")
    dtype = np.dtype(np.uint16 if high < 2**16 else np.uint32)
    resolution: dict[str, Any] = {}
    if all(unit in MICROMETRES for unit in kept.units[-2:]):
        height, width = (
            abs(size) * MICROMETRES[unit]
            for size, unit in zip(kept.scale[-2:], kept.units[-2:], strict=True)
        )
        resolution = tiff_resolution((height, width))
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            (plane.astype(dtype) for plane in _planes(labels)),
            shape=shape,
            dtype=dtype,
            bigtiff=math.prod(shape) * dtype.itemsize > LARGEST_CLASSIC,
            photometric="minisblack",
            compression="zlib",
            metadata={
                "content": _MARK,
                **kept._asdict(),
                "axes": "".join(axis[:1] or "q" for axis in kept.axes).upper(),
                "names": kept.axes,
            },
            **resolution,
        )


def tiff_resolution(pixel_size: Sequence[float]) -> dict[str, Any]:
    """Give the keywords of `tifffile.imwrite` for the height and width of a pixel in µm."""
    height, width = pixel_size
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ValueError(f"`pixel_size` must be positive, got {tuple(pixel_size)}.")
    per_centimetre = tuple(_MICROMETRES_PER_CENTIMETRE / length for length in (width, height))
    return {"resolution": per_centimetre, "resolutionunit": "CENTIMETER"}


def read_label_tiff(path: str | Path) -> tuple[NDArray, Place]:
    """Read what `write_label_tiff` wrote.

    Raises:
        ValueError: If the file was written by something else.
    """
    with tifffile.TiffFile(path) as file:
        notes = (file.shaped_metadata or ({},))[0]
        if notes.get("content") != _MARK:
            raise ValueError(
                f"{path} must be a label TIFF of vimunet. Open it with napari's own reader, and "
                "turn the image into labels by a right click on its layer."
            )
        labels = file.asarray()
    fields = {name: tuple(notes[name]) for name in Place._fields}
    return labels, Place(**fields | {"axes": tuple(notes["names"])})


def place_of_image(path: str | Path, axes: str) -> Place:
    """Tell the size of a pixel as an image file declares it.

    Known are OME-Zarr, OME-TIFF, TIFF by ImageJ, and TIFF with a resolution per centimetre.

    Args:
        path: Image file of any kind.
        axes: Of the image, a letter each, "zyx" for example.

    Returns:
        Its place; pixels of 1 where nothing is declared.
    """
    with open_image(path) as image:
        return place_of(image, axes)


def place_of(image: LazyImage, axes: str) -> Place:
    """Tell the size of a pixel as an opened image declares it; see `place_of_image`."""
    known = [image.pixel.get(axis, (1.0, "pixel")) for axis in axes]
    return Place.of(len(axes), [size for size, _ in known], None, [u for _, u in known], axes)


def _planes(labels: Any) -> Iterator[NDArray]:
    for index in np.ndindex(*labels.shape[:-2]):
        yield np.asarray(labels[index])
