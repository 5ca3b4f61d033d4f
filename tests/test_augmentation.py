"""Other image qualities: what is drawn, what must not change, and that nothing is lost."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vimunet.io.pairs import Sample
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.semantic import Semantic
from vimunet.training.augmentation import clear_out, degrade, draw_zoom, resize
from vimunet.training.crops import RandomCrops


@pytest.fixture
def picture(rng):
    return gaussian_filter(rng.normal(size=(1, 60, 80)), (0, 2, 2)).astype(np.float32)


def test_zooms_are_one_in_a_third_and_log_uniform_else(rng):
    zooms = np.array([draw_zoom(rng, 0.5, 2.0) for _ in range(6000)])
    assert (zooms == 1).mean() == pytest.approx(1 / 3, abs=0.02)
    assert zooms.min() >= 0.5
    assert zooms.max() <= 2
    others = np.log2(zooms[zooms != 1])
    assert np.histogram(others, 4, (-1, 1))[0] / others.size == pytest.approx(0.25, abs=0.02)


def test_resized_squares_keep_their_place():
    labels = np.zeros((20, 30), np.uint16)
    labels[4:8, 10:20] = 7
    image = labels[None].astype(np.float32)
    pixels, bigger = resize(image, labels, (40, 60))
    assert (bigger == np.kron(labels, np.ones((2, 2), np.uint16))).all()
    assert pixels.shape == (1, 40, 60)
    assert (pixels[0, 10:14, 22:38] == 7).all()  # inside, away from interpolated edges
    pixels, smaller = resize(image, labels, (10, 15))
    assert (smaller == labels[::2, ::2]).all()
    assert pixels.sum() == pytest.approx(image.sum() / 4, rel=0.05)  # the mean brightness stays


def test_shrinking_does_not_alias(rng):
    noise = rng.normal(size=(1, 128, 128)).astype(np.float32)
    small, _ = resize(noise, np.zeros((128, 128), int), (32, 32))
    assert small.std() < 0.5 * noise[:, ::4, ::4].std()


def test_degraded_images_are_standardised_and_differ(picture):
    standard = (picture - picture.mean()) / picture.std()
    seen = [degrade(standard, np.random.default_rng(i)) for i in range(60)]
    for image in seen:
        assert image.dtype == np.float32
        assert image.shape == picture.shape
        assert abs(image.mean()) < 1e-4
        assert image.std() == pytest.approx(1, abs=1e-3)
    with_original = np.array([np.corrcoef(image.ravel(), standard.ravel())[0, 1] for image in seen])
    assert (np.abs(with_original) > 0.6).all()  # still the same picture
    assert 5 <= (with_original < 0).sum() <= 28  # a quarter is inverted
    again = degrade(standard, np.random.default_rng(3))
    assert (again == seen[3]).all()


def test_a_constant_image_stays_finite(rng):
    for _ in range(20):
        assert np.isfinite(degrade(np.zeros((1, 16, 16), np.float32), rng)).all()


def test_zoom_of_crops_is_the_one_asked_for():
    """A disc of 20 pixels is between 30 and 40 wide at a scale of 1.5 to 2."""
    y, x = np.mgrid[:64, :64]
    disc = (np.hypot(y - 32, x - 32) <= 10).astype(np.uint8)
    sample = Sample("disc", lambda: (disc * 100, disc))
    crops = RandomCrops([sample], 64, Boundaries(), augment=True, zoom=(1.5, 2.0), length=80)
    seen = [labels for _, labels in map(crops.crop, range(80))]
    uncut = [x for x in seen if not (x[0].any() or x[-1].any() or x[:, 0].any() or x[:, -1].any())]
    widths = {int(labels.any(0).sum()) for labels in uncut}
    assert 21 in widths  # the third that is not magnified
    assert not widths & set(range(23, 30))
    assert widths & set(range(30, 40))
    assert max(widths) <= 43
    with pytest.raises(ValueError, match="`zoom` must be two factors"):
        RandomCrops([sample], 64, Boundaries(), zoom=(2.0, 1.0))


@pytest.fixture
def square(rng):
    """A bright square of 12 pixels on a dark background with noise, and its labels."""
    labels = np.zeros((60, 80), np.uint16)
    labels[20:32, 30:42] = 5
    return (rng.normal(10, 2, (1, 60, 80)) + 50 * (labels > 0)).astype(np.float32), labels


def test_cleared_images_have_nothing_but_a_rectangle(square):
    image, labels = square
    emptied, seen = 0, 0
    for number in range(200):
        cleared, left = clear_out(image, labels, np.random.default_rng(number))
        assert (cleared.dtype, cleared.shape) == (image.dtype, image.shape)
        kept = (cleared == image)[0]
        assert (left[kept] == labels[kept]).all()
        assert not left[~kept].any()
        outside = cleared[0][~kept]
        assert abs(np.median(outside) - 10) < 2 * outside.std() + 1
        assert 0.2 < outside.std() < 5 * 2
        emptied += not kept.any()
        seen += left.any()
        if kept.any():
            rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
            assert kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert kept.sum() <= 0.37 * kept.size
    assert 70 <= emptied <= 130
    assert 20 <= seen <= 100


def test_what_has_no_background_is_not_cleared(square):
    image, _ = square
    labels = np.ones(image.shape[1:], int)
    assert clear_out(image, labels, np.random.default_rng(0)) == (image, labels)


def test_crops_are_cleared_where_there_may_be_nothing(square):
    image, labels = square
    sample = Sample("square", lambda: (image[0], labels))
    empty = []
    for representation in (Boundaries(), Boundaries(foreground=False), Semantic()):
        crops = RandomCrops(
            [sample], (60, 80), representation, augment=True, zoom=(1, 1), length=200
        )
        empty.append(sum(not crops.crop(index)[1].any() for index in range(200)))
    assert 8 <= empty[0] <= 32  # one of ten is cleared, most of them keep no piece of the square
    assert empty[1:] == [0, 0]
