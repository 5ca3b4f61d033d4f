"""Random changes of image quality, so that a network holds on images from other microscopes.

Only `resize` and `clear_out` change labels too; flips and rotations belong to `crops.py`.
"""

import numpy as np
from scipy.ndimage import gaussian_filter, zoom


def draw_zoom(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a magnification: 1 in one of three cases, else log-uniform between `low` and `high`."""
    if rng.random() < 1 / 3:
        return 1.0
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def resize(
    image: np.ndarray, labels: np.ndarray, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image and its labels to a size.

    Args:
        image: (c, [z,] y, x) float image; interpolated linearly, smoothed before if it shrinks.
        labels: ([z,] y, x) integer labels; each pixel takes the nearest one.
        size: ([z,] y, x) size wanted, in pixels.

    Returns:
        Image and labels of that size.
    """
    factors = [want / have for want, have in zip(size, labels.shape, strict=True)]
    blur = [0.0, *(max(0.0, (1 / factor - 1) / 2) for factor in factors)]
    smooth = gaussian_filter(image, blur) if max(blur) > 0 else image
    options = {"mode": "grid-constant", "grid_mode": True}
    scaled = zoom(smooth, [1, *factors], order=1, **{**options, "mode": "nearest"})
    return scaled, zoom(labels, factors, order=0, **options)


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change contrast, illumination, sharpness and noise of an image at random.

    Each with its own probability, in the order in which a microscope would: uneven illumination
    (a plane over the image, up to 60 % from end to end), blur (up to 2 pixels), gamma (0.5 to 2),
    noise (up to 30 % of the spread, also coarse-grained), and contrast inversion (one of four).

    Args:
        image: (c, [z,] y, x) float32 image, standardised.
        rng: Source of randomness.

    Returns:
        Image of the same shape, standardised again over all channels.
    """
    low, high = np.quantile(image, [0.001, 0.999])
    unit = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    height, width = image.shape[-2:]
    flat = [0.0] * (image.ndim - 2)  # sharpness and grain are those of a section
    if rng.random() < 0.3:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
        y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
        unit = unit * (1 + strength * (np.cos(angle) * x + np.sin(angle) * y))
        unit = unit + rng.uniform(0, 0.2) * (np.sin(angle) * x - np.cos(angle) * y + 0.5)
    if rng.random() < 0.3:
        unit = gaussian_filter(unit, [*flat, *[rng.uniform(0.3, 2.0)] * 2])
    if rng.random() < 0.5:
        unit = np.clip(unit, 0, None) ** (2 ** rng.uniform(-1, 1))
    if rng.random() < 0.4:
        noise = rng.normal(size=unit.shape)
        if rng.random() < 0.5:
            noise = gaussian_filter(noise, [*flat, 0.7, 0.7]) * 2.5
        unit = unit + rng.uniform(0, 0.3) * unit.std() * noise
    if rng.random() < 0.25:
        unit = -unit
    return ((unit - unit.mean()) / (unit.std() + 1e-7)).astype(np.float32)


def clear_out(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace most of an image, or all of it, by background in which there is nothing.

    Networks with instance norms blow up the noise of an empty piece of a large image to full
    contrast: they must have seen that there is nothing in it. The background has the level of the
    unlabelled pixels and a fifth to five times their median deviation, as white, coarse or smooth
    noise, in steps or not. One of two images keeps a rectangle of 10 to 60 % of its sides.

    Args:
        image: (c, [z,] y, x) float image.
        labels: ([z,] y, x) labels, 0 is background.
        rng: Source of randomness.

    Returns:
        Image and labels of the same shape; the given ones if no pixel is background.
    """
    outside = image[:, labels == 0]
    if not outside.size:
        return image, labels
    level = np.median(outside, axis=1)
    deviation = np.median(np.abs(outside - level[:, None]), axis=1)
    spread = np.maximum(deviation, 1e-3) * 5 ** rng.uniform(-1, 1)
    flat = [0.0] * (image.ndim - 2)
    grain = rng.choice([0.0, rng.uniform(0.4, 2.0), rng.uniform(10, 60)])
    noise = gaussian_filter(rng.normal(size=image.shape), [*flat, grain, grain])
    noise = (noise - noise.mean()) / (noise.std() + 1e-7)
    if rng.random() < 0.5:
        noise = np.round(noise * (levels := rng.uniform(0.5, 4))) / levels
    each = (slice(None), *[None] * labels.ndim)
    empty = level[each] + spread[each] * noise
    nothing = np.zeros_like(labels)
    if rng.random() < 0.5:
        sides = [max(1, round(length * rng.uniform(0.1, 0.6))) for length in labels.shape]
        kept = tuple(
            slice(start, start + side)
            for side, start in (
                (side, int(rng.integers(length - side + 1)))
                for side, length in zip(sides, labels.shape, strict=True)
            )
        )
        empty[(slice(None), *kept)] = image[(slice(None), *kept)]
        nothing[kept] = labels[kept]
    return empty.astype(image.dtype), nothing
