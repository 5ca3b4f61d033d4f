"""Train on CREMI: neurites in sections of the adult fly brain (electron microscopy).

The defaults are the paper's recipe: the boundary map alone, Dice loss, 512 crops with at least
two objects, batch 2, Adam 1e-4, 100,000 iterations.

    python experiments/cremi/train.py --model vim_t --data DIR --output runs/cremi_vim_t
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Boundaries, Distances


def main() -> None:
    flags = recipe.parser("Train on CREMI.")
    flags.add_argument(
        "--representation", choices=("boundaries", "distances"), default="boundaries"
    )
    options = flags.parse_args()
    boundaries = options.representation == "boundaries"
    best = recipe.run(
        options,
        Boundaries(foreground=False) if boundaries else Distances(),
        splits.official,
        splits.stand_in,
        "CREMI",
        splits.LICENCES,
        min_objects=2,
    )
    print(f"Best model: {best}")


if __name__ == "__main__":
    main()
