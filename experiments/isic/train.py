"""Train on ISIC: skin lesions in dermoscopic images.

The defaults are VM-UNet's recipe: images of 256 x 256, binary cross-entropy and Dice, AdamW 1e-3,
cosine to 1e-5, batch 32, flips and rotations by any angle; 17,700 iterations are 300 epochs of
ISIC 2018.

    python experiments/isic/train.py --model vim_t --data DIR --output runs/isic_vim_t
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipe
import splits

from vimunet.representation import Semantic


def main() -> None:
    flags = recipe.parser("Train on ISIC.")
    flags.set_defaults(
        iterations=17_700,
        crop_size=256,
        batch_size=32,
        lr=1e-3,
        optimizer="adamw",
        weight_decay=1e-2,
        schedule="cosine",
        free_rotation=0.5,
        val_images=64,
    )
    options = flags.parse_args()
    best = recipe.run(
        options,
        Semantic(),
        splits.official,
        splits.stand_in,
        "ISIC",
        splits.LICENCES,
        in_channels=3,
    )
    print(f"Best model: {best}")


if __name__ == "__main__":
    main()
