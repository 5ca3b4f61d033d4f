"""Train the model for neurites that ships with the package.

The defaults are its recipe: `vim_n`, boundaries alone, 192 crops, batch 6, AdamW 1e-3
falling along a cosine, images changed in scale, contrast, sharpness and noise.

    python experiments/neurites/train.py --data DIR --output runs/neurites
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Boundaries

if __name__ == "__main__":
    recipe.train_shipped(
        "neurites",
        Boundaries(foreground=False),
        splits.neurites,
        "the FIB-25 sample",
        splits.LICENCE,
        iterations=3000,
        crop_size=192,
        batch_size=6,
        zoom=(1.0, 2.5),
    )
