"""Train the model for cells in phase contrast that ships with the package.

The defaults are its recipe: `vim_n`, foreground and distances, 256 crops, batch 4, AdamW 1e-3
falling along a cosine, images changed in scale, contrast, sharpness and noise.

    python experiments/phase/train.py --data DIR --output runs/phase
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Distances

if __name__ == "__main__":
    recipe.train_shipped(
        "cells in phase contrast",
        Distances(),
        splits.phase,
        "Usiigaci",
        splits.LICENCE,
        iterations=12000,
        zoom=(0.7, 1.4),
    )
