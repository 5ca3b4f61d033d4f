"""nnU-Net: write a folder of images and labels as its data set, and read its predictions.

nnU-Net sorts pixels into classes and knows no objects. `to_classes` hides the objects in classes,
`to_labels` finds them again (both in `classes.py`); `write_dataset` and `read_prediction` do so
with files. Nothing of nnU-Net is imported, and nothing here trains: `docs/nnunet.md` has the
commands in between.

Two protocols. "fair": the boundary lies inside the objects and is given back to them, so that a
perfect network scores nearly 1. "published": the conversion and evaluation published with ViM-UNet,
whose boundary lies on both sides of an outline and belongs to no object; a perfect network loses
the rim of every object.
"""

from vimunet.bridges.nnunet.classes import (
    CLASSES,
    Kind,
    one_hot,
    to_classes,
    to_labels,
)
from vimunet.bridges.nnunet.dataset import WrittenDataset, write_dataset
from vimunet.bridges.nnunet.predictions import (
    find_predictions,
    is_prediction_folder,
    read_prediction,
)

__all__ = [
    "CLASSES",
    "Kind",
    "WrittenDataset",
    "find_predictions",
    "is_prediction_folder",
    "one_hot",
    "read_prediction",
    "to_classes",
    "to_labels",
    "write_dataset",
]
