"""Train on Synapse: eight abdominal organs in slices of CT.

The defaults are VM-UNet's recipe: slices of 224 x 224, cross-entropy and Dice, AdamW 1e-3, cosine
to 1e-5, batch 32; 20,700 iterations are 300 epochs. Quarter turns and flips are theirs; turns by
up to 20 degrees are not among ours.

    python experiments/synapse/train.py --model vim_t --data DIR --output runs/synapse_vim_t
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.data.synapse import NUM_CLASSES
from vimunet.representation import Semantic


def main() -> None:
    flags = recipe.parser("Train on Synapse.", stand_in=False)
    flags.set_defaults(
        iterations=20_700,
        crop_size=224,
        batch_size=32,
        lr=1e-3,
        optimizer="adamw",
        weight_decay=1e-2,
        schedule="cosine",
        rotations=True,
        val_images=64,
    )
    options = flags.parse_args()
    best = recipe.run(
        options,
        Semantic(NUM_CLASSES),
        splits.official,
        splits.official,
        "Synapse",
        (splits.LICENCE, splits.LICENCE),
    )
    print(f"Best model: {best}")


if __name__ == "__main__":
    main()
