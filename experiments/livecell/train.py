"""Train on LIVECell: cells in phase-contrast images.

The defaults are the paper's recipe: Dice loss on foreground and boundaries (or on foreground and
distances), 512 crops, batch 2, Adam 1e-4, 100,000 iterations.

    python experiments/livecell/train.py --model vim_s --data DIR --output runs/livecell_vim_s
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Boundaries, Distances


def main() -> None:
    flags = recipe.parser("Train on LIVECell.")
    flags.add_argument(
        "--representation", choices=("boundaries", "distances"), default="boundaries"
    )
    options = flags.parse_args()
    best = recipe.run(
        options,
        Boundaries() if options.representation == "boundaries" else Distances(),
        splits.official,
        splits.stand_in,
        "LIVECell",
        splits.LICENCES,
    )
    print(f"Best model: {best}")


if __name__ == "__main__":
    main()
