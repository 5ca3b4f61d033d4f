"""Which cases the Synapse experiment trains, validates and tests on."""

from pathlib import Path
from typing import Literal

from vimunet.data import Sample
from vimunet.data.synapse import synapse_slices, synapse_volumes

Split = Literal["train", "val", "test"]
LICENCE = "trained on Synapse (syn3193805); see https://www.synapse.org for its terms"
VAL_CASES = 2  # of 18; VM-UNet has none: its best model is the one with the lowest training loss


def official(root: Path, split: Split) -> list[Sample]:
    """Read TransUNet's prepared data.

    Args:
        root: Folder with `train_npz` and `test_vol_h5`.
        split: "train" (slices of 224 x 224), "val" (all slices of the last two training cases)
            or "test" (whole volumes).

    Raises:
        ValueError: If there are not enough cases to keep some for validation.
    """
    if split == "test":
        return synapse_volumes(root)
    slices = synapse_slices(root)
    cases = sorted({sample.name.split("_")[0] for sample in slices})
    if len(cases) <= VAL_CASES:
        raise ValueError(f"{root} must have more than {VAL_CASES} cases, got {', '.join(cases)}.")
    kept = cases[-VAL_CASES:]
    return [s for s in slices if (s.name.split("_")[0] in kept) == (split == "val")]
