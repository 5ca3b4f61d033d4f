"""Where layers lie: which plane and part of an image is shown, and where its labels belong."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from napari import Viewer
from napari.components import Camera
from napari.layers import Image, Labels, Layer
from napari.utils.transforms import Affine

from vimunet.axes import Box
from vimunet.interactive.session import Segmentation


def camera(viewer: Viewer) -> Camera:
    """Give the camera of a viewer, which has moved in napari 0.9."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def full_resolution(layer: Image) -> Any:
    """Give the data of an image layer; of a pyramid, its largest level."""
    return layer.data[0] if layer.multiscale else layer.data


def leading_axes(layer: Image | None) -> tuple[int, ...]:
    """Give the lengths of the axes before y and x."""
    if layer is None:
        return ()
    shape = full_resolution(layer).shape
    return tuple(shape[: len(shape) - 2 - bool(layer.rgb)])


def shown_position(layer: Layer, point: Sequence[float]) -> tuple[float, ...]:
    """Say which plane of a layer is shown.

    Args:
        layer: Any layer.
        point: Where the sliders of the viewer stand, in world coordinates.

    Returns:
        Position along the axes before y and x, in pixels of the layer.
    """
    position = layer.world_to_data(np.asarray(point)[-layer.ndim :])
    return tuple(float(place) for place in position[:-2])


def visible_box(
    layer: Image, shape: tuple[int, int], center: Sequence[float], size: tuple[float, float]
) -> Box:
    """Find the part of a plane that is inside a rectangle of the world.

    Args:
        layer: An image layer.
        shape: Height and width of its planes in pixels.
        center: (..., y, x) centre of the rectangle in world coordinates.
        size: Height and width of the rectangle in world units.

    Returns:
        The smallest box of pixels around what is visible.

    Raises:
        ValueError: If nothing is visible.
    """
    corners = []
    for dy, dx in product((-0.5, 0.5), repeat=2):
        world = np.zeros(layer.ndim)
        world[-2:] = center[-2] + dy * size[0], center[-1] + dx * size[1]
        corners.append(layer.world_to_data(world)[-2:])
    low = np.clip(np.floor(np.min(corners, axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(np.max(corners, axis=0)) + 1, 0, shape).astype(int)
    if (high <= low).any():
        raise ValueError(
            f"A part of {layer.name} must be visible to be segmented, got none. Move it into "
            "the window (Ctrl+R), or choose `whole image` as region."
        )
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def same_place(layer: Layer) -> dict[str, Any]:
    """Give the keywords that put a new layer where `layer` lies, with its scale and units."""
    return {
        "scale": layer.scale,
        "translate": layer.translate,
        "rotate": layer.rotate,
        "shear": layer.shear,
        "affine": layer.affine,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def place_of_labels(image: Image, segmentation: Segmentation) -> dict[str, Any]:
    """Give the keywords that put the labels of a part of an image in their place.

    Along a channel axis the labels have length 1; they are made so thick there that they lie on
    all channels.
    """
    place = same_place(image)
    planes, (rows, columns) = segmentation.planes, segmentation.box
    offset = np.zeros(image.ndim)
    offset[-2:] = rows.start, columns.start
    if planes.channel_axis is not None:
        offset[planes.channel_axis] = (planes.channels - 1) / 2
    linear = Affine(
        scale=image.scale, rotate=image.rotate, shear=image.shear, ndim=image.ndim
    ).linear_matrix
    place["translate"] = np.asarray(image.translate) + linear @ offset
    if planes.channel_axis is not None:
        scale = np.array(image.scale)
        scale[planes.channel_axis] *= planes.channels
        place["scale"] = scale
    return place


def part_of(labels: Labels, image: Image) -> Box:
    """Find the part of an image that labels cover.

    Raises:
        ValueError: If they lie elsewhere, or have pixels of another size.
    """
    corner = image.world_to_data(labels.data_to_world(np.zeros(labels.ndim)))[-2:]
    step = image.world_to_data(labels.data_to_world(np.eye(labels.ndim)[-1]))[-2:] - corner
    start = np.rint(corner).astype(int)
    stop = start + labels.data.shape[-2:]
    height, width = full_resolution(image).shape[len(leading_axes(image)) :][:2]
    inside = (start >= 0).all() and stop[0] <= height and stop[1] <= width
    if not inside or not np.allclose(step, (0, 1), atol=1e-3) or abs(corner - start).max() > 0.1:
        raise ValueError(
            f"Labels {labels.name} must lie on the pixels of {image.name}, got other ones. Choose "
            "the image that they were made from."
        )
    return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


def micrometres(layer: Layer) -> tuple[float, float] | None:
    """Give the size (y, x) of a pixel in µm; None if the layer has no unit of length."""
    sizes = []
    for scale, unit in zip(layer.scale[-2:], layer.units[-2:], strict=True):
        if not unit.is_compatible_with("micrometer"):
            return None
        sizes.append(abs(float((scale * unit).to("micrometer").magnitude)))
    return sizes[0], sizes[1]
