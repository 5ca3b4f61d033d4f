"""What perfect maps and classes lose, worked out by hand."""

import numpy as np
import pytest

from vimunet.comparison import perfect_maps
from vimunet.comparison.ceilings import through_classes, through_maps
from vimunet.representations.boundaries import Boundaries


@pytest.fixture
def squares():
    """Two squares of 16 pixels' side that touch, with numbers that are not 1 and 2."""
    labels = np.zeros((24, 48), np.uint16)
    labels[4:20, 6:22] = 7
    labels[4:20, 22:38] = 3
    return labels


def test_the_default_maps_lose_nothing(squares):
    found = through_maps(squares, Boundaries())
    assert found.max() == 2
    for number in (7, 3):
        assert len(set(found[squares == number])) == 1
    np.testing.assert_array_equal(found > 0, squares > 0)


def test_a_boundary_map_alone_leaves_no_background(squares):
    assert (through_maps(squares, Boundaries(foreground=False)) > 0).all()


def test_published_classes_lose_the_rim_of_every_object(squares):
    """The boundary lies on both sides of each outline and belongs to no object."""
    found = through_classes(squares, "boundaries", "published")
    expected = np.zeros(squares.shape, bool)
    expected[5:19, 7:21] = expected[5:19, 23:37] = True
    np.testing.assert_array_equal(found > 0, expected)
    fair = through_classes(squares, "boundaries", "fair")
    np.testing.assert_array_equal(fair > 0, squares > 0)
    assert fair.max() == found.max() == 2


def test_a_published_boundary_alone_makes_an_object_of_the_background(squares):
    """The protocol holds for writing the classes too: unlabelled pixels are boundary if fair."""
    assert through_classes(squares, "boundary", "published").max() == 3
    fair = through_classes(squares, "boundary", "fair")
    assert fair.max() == 2
    assert len(set(fair[squares == 7])) == len(set(fair[squares == 3])) == 1


def test_which_ceilings_fit_images_with_and_without_background(squares):
    assert list(perfect_maps()) == [
        "foreground and boundary maps",
        "distance maps",
        "nnU-Net's classes",
        "nnU-Net's classes, as published",
    ]
    em = perfect_maps(background=False)
    assert list(em) == ["boundary map", *list(perfect_maps())[2:]]
    filled = squares[4:20, 6:38]
    for title, way in em.items():
        found = way(filled)
        assert found.shape == filled.shape, title
        assert (found > 0).all(), title
        assert len(np.unique(found)) == 2, title
    published = perfect_maps()["nnU-Net's classes, as published"](squares)
    np.testing.assert_array_equal(published, through_classes(squares, "boundaries", "published"))
