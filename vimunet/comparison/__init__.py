"""Several methods on the same images: who is best, by how much, and what goes wrong where.

`compare` scores the predictions of any tools, `explain` paints what became of each object of one
image. `figure` and `report` put the result into pictures and words, with `sentences` and `pictures`
as their parts. The scores themselves are in `vimunet.scores`.
"""

from vimunet.comparison.ceilings import perfect_maps
from vimunet.comparison.outcomes import LABELLED_OUTCOMES, PREDICTED_OUTCOMES, explain
from vimunet.comparison.scoring import compare, write_tables

__all__ = [
    "LABELLED_OUTCOMES",
    "PREDICTED_OUTCOMES",
    "compare",
    "explain",
    "perfect_maps",
    "write_tables",
]
