"""Train the model for nuclei that ships with the package.

The defaults are its recipe: `vim_n`, foreground and boundaries, 256 crops, batch 4, AdamW 1e-3
falling along a cosine, images changed in scale, contrast, sharpness and noise.

    python experiments/nuclei/train.py --data DIR --output runs/nuclei
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Boundaries


def main() -> None:
    flags = recipe.parser("Train the model for nuclei.", stand_in=False)
    flags.set_defaults(**recipe.SHIPPED, iterations=6000)
    options = flags.parse_args()
    best = recipe.run(
        options,
        Boundaries(),
        splits.nuclei,
        splits.nuclei,
        "the 2018 Data Science Bowl",
        (splits.LICENCE, splits.LICENCE),
    )
    print(f"Best model: {best}")


if __name__ == "__main__":
    main()
