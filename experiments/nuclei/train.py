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

if __name__ == "__main__":
    recipe.train_shipped(
        "nuclei",
        Boundaries(),
        splits.nuclei,
        "the 2018 Data Science Bowl",
        splits.LICENCE,
        iterations=10000,
        zoom=(0.5, 1.8),
    )
