"""Labels drawn on their image, to look at: translucent colours, outlines, stretched contrast.

Arrays in, arrays out; nothing here is meant to be measured.
"""

import colorsys

import numpy as np
from numpy.typing import NDArray

from vimunet.labels import find_boundaries

# In the hue circle, steps of the golden ratio keep neighbouring numbers apart.
_GOLDEN_RATIO = 0.618034
_PALETTE = np.array(
    [
        colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, (0.65, 0.85, 1.0)[i % 3], (1.0, 0.85)[i % 2])
        for i in range(252)
    ],
    dtype=np.float32,
)


def stretch_contrast(image: NDArray) -> NDArray[np.float32]:
    """Map the grey values of an image to [0, 1], robust against single bright or dark pixels.

    Args:
        image: (y, x) or (y, x, c) of any real type. NaN and infinity are drawn black.

    Returns:
        (y, x, 3) in [0, 1]: the 0.5 % darkest values 0, the 0.5 % brightest 1. Three channels
        are stretched together and stay red, green and blue; any other number is averaged to
        grey. An image of one value becomes 0.

    Raises:
        ValueError: If the image has the wrong shape or no pixels.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"`image` must have shape (y, x) or (y, x, c), got {image.shape}.")
    image = image.astype(np.float32)
    if image.ndim == 2:
        image = image[:, :, None]
    elif image.shape[2] != 3:
        image = image.mean(axis=2, keepdims=True)
    valid = np.isfinite(image)
    low, high = np.percentile(image[valid], (0.5, 99.5)) if valid.any() else (0.0, 0.0)
    if high <= low:
        low, high = (image[valid].min(), image[valid].max()) if valid.any() else (0.0, 0.0)
    stretched = np.clip((image - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    stretched[~valid] = 0
    return np.repeat(stretched, 3, axis=2) if stretched.shape[2] == 1 else stretched


def color_labels(labels: NDArray) -> NDArray[np.float32]:
    """Give each object a colour of its own.

    Args:
        labels: (y, x) integer labels, 0 is background.

    Returns:
        (y, x, 3) red, green, blue in [0, 1]; background is black. The colour depends on the
        number only and repeats after 252 numbers.
    """
    colors = _PALETTE[np.asarray(labels) % len(_PALETTE)]
    colors[labels == 0] = 0
    return colors


def outlines(labels: NDArray) -> NDArray[np.bool_]:
    """Mark the pixels of each object that touch something else with one of their four sides.

    Args:
        labels: (y, x) integer labels, 0 is background.

    Returns:
        (y, x) mask. Background is never marked, nor is the border of the image.
    """
    labels = np.asarray(labels)
    return find_boundaries(labels) & (labels != 0)


def draw_overlay(image: NDArray, labels: NDArray, opacity: float = 0.3) -> NDArray[np.uint8]:
    """Draw labels over their image.

    Args:
        image: (y, x) or (y, x, c) of any real type.
        labels: (y, x) integer labels, 0 is background.
        opacity: How much the colours cover the image inside the objects, in [0, 1]. Outlines
            are always opaque.

    Returns:
        (y, x, 3) picture, 0 ... 255.

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> labels = np.zeros((5, 5), dtype=int)
        >>> labels[1:4, 1:4] = 1
        >>> picture = draw_overlay(np.ones((5, 5)), labels, opacity=0)
        >>> (picture.max(axis=2) > 0).astype(int)  # only the outline is seen
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 1, 0, 1, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    picture = stretch_contrast(image)
    labels = np.asarray(labels)
    if labels.shape != picture.shape[:2]:
        raise ValueError(
            f"`labels` must have shape {picture.shape[:2]} to fit `image` "
            f"{np.shape(image)}, got {labels.shape}."
        )
    colors = color_labels(labels)
    inside = labels != 0
    picture[inside] = (1 - opacity) * picture[inside] + opacity * colors[inside]
    edge = outlines(labels)
    picture[edge] = colors[edge]
    return np.rint(picture * 255).astype(np.uint8)
