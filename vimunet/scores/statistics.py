"""Means over images and how uncertain they are."""

from collections.abc import Iterable, Iterator

import numpy as np

_MOST_DRAWN = 1_000_000  # numbers of images in memory


def confidence_interval(scores: Iterable[float], samples: int = 2000) -> list[float]:
    """Estimate how uncertain the mean over images is.

    Args:
        scores: One per image; nan is left out.
        samples: Number of bootstrap samples: images drawn with replacement, always the same
            draws for the same number of images.

    Returns:
        Low and high end of the central 95 % of the means; nan if there is no score. With one
        image both are its score, which says nothing.
    """
    values = np.asarray(list(scores), dtype=float)
    values = values[~np.isnan(values)]
    if not values.size:
        return [float("nan"), float("nan")]
    means = [values[chosen].mean(axis=1) for chosen in resamples(values.size, samples)]
    return central_part(np.concatenate(means))


def resamples(count: int, samples: int = 2000) -> Iterator[np.ndarray]:
    """Draw images with replacement, always the same draws for the same number of images.

    Args:
        count: Number of images.
        samples: Number of draws.

    Yields:
        (k, count) which images k bootstrap samples have, until there were `samples` of them.
    """
    rng = np.random.default_rng(0)
    at_a_time = max(1, _MOST_DRAWN // count)
    for start in range(0, samples, at_a_time):
        yield rng.integers(count, size=(min(at_a_time, samples - start), count))


def central_part(draws: Iterable[float]) -> list[float]:
    """Return low and high end of the central 95 %; nan is left out, and returned if all are."""
    values = np.array(list(draws), dtype=float)
    values = values[~np.isnan(values)]
    if not values.size:
        return [float("nan"), float("nan")]
    return np.percentile(values, [2.5, 97.5]).tolist()


def mean_defined(values: np.ndarray, otherwise: float = float("nan")) -> float:
    """Average what is not nan; `otherwise` if all is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else otherwise
