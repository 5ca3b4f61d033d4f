"""Which objects of neighbouring blocks or slices are one: numpy in, numpy out.

Blocks that lie side by side are compared on a line that both of them saw; slices of a stack are
compared whole. What are partners there is one object.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vimunet.labels import renumbered
from vimunet.scores.matching import Overlap


def partners(faces: Iterable[tuple[np.ndarray, np.ndarray]], threshold: float) -> np.ndarray:
    """Pair the objects of two faces that lie on each other.

    Args:
        faces: The labels of the one and of the other, non-negative integers of the same shape, 0
            is background; in one piece, or in as many as one likes.
        threshold: Least intersection over union of a pair, in (0, 1].

    Returns:
        (n, 2) labels, of the one and the other, each in one pair at most; see `Overlap.matches`.

    Raises:
        ValueError: If the threshold is out of its range, or the shapes differ.

    Examples:
        >>> one, other = np.array([1, 1, 1, 0, 2]), np.array([7, 7, 0, 0, 8])
        >>> partners([(one, other)], 0.5)
        array([[1, 7],
               [2, 8]])
        >>> partners([(one[:2], other[:2]), (one[2:], other[2:])], 0.5)
        array([[1, 7],
               [2, 8]])
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"The threshold of an IoU must be in (0, 1], got {threshold}.")
    rows = [_shared_pixels(one, other) for one, other in faces]
    shared = np.concatenate([np.zeros((1, 3), np.int64), *rows])
    pairs, where = np.unique(shared[:, :2], axis=0, return_inverse=True)
    pixels = np.bincount(where.ravel(), weights=shared[:, 2]).astype(np.int64)
    overlap = Overlap(renumbered(pairs[:, 0]), renumbered(pairs[:, 1]), pixels)
    matched, other_matched, _ = overlap.matches(threshold)
    ids, other_ids = (np.unique(pairs[:, side]) for side in (0, 1))
    return np.stack([ids[matched], other_ids[other_matched]], axis=1)


def _shared_pixels(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """List (n, 3) labels of the one, labels of the other and how many pixels they share."""
    overlap = Overlap.between(one, other)
    ids, other_ids = (np.unique(np.append(face, 0)) for face in (one, other))
    columns = [ids[overlap.predicted], other_ids[overlap.labelled], overlap.pixels]
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def joined_numbers(
    counts: Sequence[int], pairs: Iterable[tuple[int, int, np.ndarray]]
) -> list[np.ndarray]:
    """Give the objects of all blocks new numbers, so that partners share one.

    Args:
        counts: Highest label of each block.
        pairs: (block, other block, (n, 2) labels in the two); see `partners`.

    Returns:
        For each block an array that maps its labels to the new ones: 0 to 0, everything else to
        1, 2, ... in the order of the blocks, without gaps.

    Examples:
        >>> joined_numbers([2, 1], [(0, 1, np.array([[2, 1]]))])
        [array([0, 1, 2]), array([0, 2])]
    """
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    edges = [labels - 1 + starts[[one, other]] for one, other, labels in pairs if len(labels)]
    rows, columns = np.concatenate(edges).T if edges else np.empty((2, 0), np.int64)
    total = int(starts[-1])
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(total, total))
    components = connected_components(graph, directed=False)[1] if total else np.empty(0, int)
    # numbered by scipy in any order: again, by where each begins
    _, begins, members = np.unique(components, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(begins))[members] + 1
    return [
        np.concatenate([[0], numbers[start:stop]]).astype(np.int64)
        for start, stop in zip(starts[:-1], starts[1:], strict=True)
    ]


def stitch_slices(labels: np.ndarray, threshold: float | None, ndim: int = 2) -> np.ndarray:
    """Make objects of stacks of the objects of their slices.

    An object goes on as its partner in the next slice; it never splits or merges on its way, and a
    slice in which it is missing ends it.

    Args:
        labels: (..., s, [z,] y, x) labels, each slice s with its own; a number may return in
            another slice. Objects of different stacks are different.
        threshold: See `partners`. None: the objects of different slices are different.
        ndim: Number of axes of a slice: a series of volumes has slices of three.

    Returns:
        (..., s, [z,] y, x) int64 labels, 1, 2, ... without gaps.
    """
    depth, size = labels.shape[-ndim - 1], labels.shape[-ndim:]
    slices = [renumbered(one) for one in labels.reshape(-1, *size)]
    pairs = []
    if threshold is not None:
        pairs = [
            (s - 1, s, partners([(slices[s - 1], slices[s])], threshold))
            for s in range(len(slices))
            if s % depth
        ]
    numbers = joined_numbers([int(one.max(initial=0)) for one in slices], pairs)
    joined = [table[one] for table, one in zip(numbers, slices, strict=True)]
    return np.array(joined, np.int64).reshape(labels.shape)
