"""Scores of a segmentation as a partition of the pixels: what is split, what is merged.

For images and volumes that objects fill, where one-to-one matches say little.
"""

import numpy as np

from vimunet.scores.matching import Overlap, ratio


def variation_of_information(
    overlap: Overlap, ignore_background: bool = True
) -> tuple[float, float]:
    """Measure splits and merges by conditional entropy, in bits per pixel.

        split = H(prediction | labels),    merge = H(labels | prediction)

    split is what remains unknown of the prediction where the label is known: 0 if no object
    was split; n equal pieces of every object give log2(n). merge is the same the other way.

    Args:
        overlap: Which objects meet.
        ignore_background: Leave out the pixels where `labels` is 0. Background of the
            prediction is one more object in either case.

    Returns:
        split and merge; nan if no pixel is counted.

    Source:
        Meila 2007, doi 10.1016/j.jmva.2006.11.013. Equal to scikit-image's with
        `ignore_labels=(0,)` and to elf's with `ignore_gt=[0]`; with
        `ignore_background=False` to the defaults of both.
    """
    predicted, labelled, pixels = _counted(overlap, ignore_background)
    if not pixels.size:
        return float("nan"), float("nan")
    share = pixels / pixels.sum()
    of_predicted = pixels / np.bincount(predicted, weights=pixels)[predicted]
    of_labelled = pixels / np.bincount(labelled, weights=pixels)[labelled]
    # max: an entropy of zero must not come out as -0.0 or as a rounding error below it
    return (
        max(0.0, float(-np.sum(share * np.log2(of_labelled)))),
        max(0.0, float(-np.sum(share * np.log2(of_predicted)))),
    )


def adapted_rand_error(
    overlap: Overlap, ignore_background: bool = True
) -> tuple[float, float, float]:
    """Compare which pairs of pixels lie in the same object.

        precision = pairs together in both / pairs together in the prediction
        recall    = pairs together in both / pairs together in the labels
        error     = 1 - 2 * precision * recall / (precision + recall)

    Merging objects lowers the precision, splitting them lowers the recall.

    Args:
        overlap: Which objects meet.
        ignore_background: Leave out the pixels where `labels` is 0. Background of the
            prediction is one more object in either case.

    Returns:
        error, precision and recall; nan where no pair is counted.

    Source:
        Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142. Pairs are of two
        different pixels, as in scikit-image, whose error is equal, but whose precision and
        recall are each other's (up to 0.26). elf also pairs each pixel with itself.
    """
    predicted, labelled, pixels = _counted(overlap, ignore_background)
    both, in_prediction, in_labels = (
        float(np.sum(sizes * (sizes - 1.0)))
        for sizes in (
            pixels,
            np.bincount(predicted, weights=pixels),
            np.bincount(labelled, weights=pixels),
        )
    )
    return (
        1 - ratio(2 * both, in_prediction + in_labels, float("nan")),
        ratio(both, in_prediction, float("nan")),
        ratio(both, in_labels, float("nan")),
    )


def cremi_score(overlap: Overlap) -> float:
    """Give sqrt((VI split + VI merge) * adapted Rand error); 0 is best, nan if nothing is labelled.

    Source:
        https://cremi.org/metrics/, with the adapted Rand error of pairs of different pixels.
    """
    split, merge = variation_of_information(overlap)
    error, _, _ = adapted_rand_error(overlap)
    return float(np.sqrt((split + merge) * error))


def _counted(
    overlap: Overlap, ignore_background: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = overlap.labelled > 0 if ignore_background else np.ones(overlap.pixels.size, bool)
    return overlap.predicted[keep], overlap.labelled[keep], overlap.pixels[keep]
