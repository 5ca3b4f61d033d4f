"""Overlays: colours where the objects are, the image everywhere else."""

import numpy as np
import pytest

from vimunet.overlay import color_labels, draw_overlay, outlines, stretch_contrast


@pytest.fixture
def labels():
    labels = np.zeros((9, 12), dtype=np.int32)
    labels[1:8, 1:6] = 1
    labels[1:8, 6:11] = 2
    return labels


def test_contrast_runs_from_black_to_white_without_outliers():
    image = np.linspace(100, 200, 10_000).reshape(100, 100)
    image[0, 0], image[99, 99] = -1e6, 5e6
    stretched = stretch_contrast(image)
    assert stretched.shape == (100, 100, 3)
    assert stretched.min() == 0
    assert stretched.max() == 1
    assert np.isclose(stretched[25, 0], 0.25, atol=0.02).all()


def test_three_channels_stay_colours_and_others_become_grey(rng):
    image = rng.uniform(0, 1, (20, 20, 3)) * [1.0, 0.5, 0.25]
    red, green, blue = stretch_contrast(image).mean(axis=(0, 1))
    assert red > 1.5 * green > 2 * blue
    assert (np.ptp(stretch_contrast(image[:, :, :2]), axis=2) == 0).all()


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_image_of_one_value_is_black(value):
    assert not stretch_contrast(np.full((4, 5), value)).any()


def test_single_pixels_are_seen_on_an_even_background():
    image = np.full((100, 100), 5, np.uint8)
    image[3, 4], image[7, 8] = 1, 9
    stretched = stretch_contrast(image)[:, :, 0]
    assert (stretched[3, 4], stretched[0, 0], stretched[7, 8]) == (0, 0.5, 1)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3, 4), (0, 4)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"`image` must have shape \(y, x\)"):
        stretch_contrast(np.zeros(shape))


def test_neighbouring_numbers_get_different_colours():
    colors = color_labels(np.arange(1, 60)[None])[0]
    distance = np.abs(colors[:, None] - colors[None]).sum(axis=2)
    assert distance[~np.eye(59, dtype=bool)].min() > 0.02
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 0.3


def test_background_is_black_and_color_depends_on_the_number_only():
    colors = color_labels(np.array([[0, 5], [5, 2**31 + 252]]))
    assert not colors[0, 0].any()
    assert (colors[0, 1] == colors[1, 0]).all()
    assert color_labels(np.array([[252, 504]], dtype=np.uint16)).any(axis=2).all()


def test_outlines_lie_inside_the_objects(labels):
    expected = np.zeros((9, 12), dtype=bool)
    expected[1:8, [1, 5, 6, 10]] = True
    expected[[1, 7], 1:11] = True
    assert (outlines(labels) == expected).all()
    assert not outlines(np.ones((5, 5), int)).any()


def test_overlay_is_the_image_outside_and_mixes_inside(labels, rng):
    image = rng.integers(0, 255, (9, 12)).astype(np.uint8)
    plain = np.rint(stretch_contrast(image) * 255)
    colors = color_labels(labels) * 255
    picture = draw_overlay(image, labels, opacity=0.25)
    assert picture.dtype == np.uint8
    assert (picture[labels == 0] == plain[labels == 0]).all()
    inside = (labels > 0) & ~outlines(labels)
    mixed = 0.75 * plain + 0.25 * colors
    assert np.abs(picture[inside] - mixed[inside]).max() <= 1
    assert np.abs(picture[outlines(labels)] - colors[outlines(labels)]).max() <= 0.5


def test_inputs_stay_as_they_are(labels):
    image = np.arange(108, dtype=np.float32).reshape(9, 12)
    before = image.copy(), labels.copy()
    draw_overlay(image, labels)
    assert (image == before[0]).all()
    assert (labels == before[1]).all()


def test_shapes_must_fit(labels):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(9, 11\)"):
        draw_overlay(np.zeros((9, 11)), labels)
