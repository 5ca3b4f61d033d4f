"""The class of each pixel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimunet.axes import PerAxis
from vimunet.representations.base import Representation, Tunable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Semantic(Representation):
    """The class of each pixel.

    Two classes need one map, the foreground; more classes have one map each, background included.

    Attributes:
        num_classes: Number of classes, background (class 0) included; at least 2.
        foreground_threshold: With two classes, pixels with less foreground are background. With
            more, the class with the largest map wins and this is not used.

    Source:
        As in Ruan & Xiang 2024, "VM-UNet", https://arxiv.org/abs/2402.02491, for skin lesions (two
        classes) and for abdominal organs (nine).
    """

    num_classes: int = 2
    foreground_threshold: float = 0.5

    name: ClassVar[str] = "semantic"
    title: ClassVar[str] = "maps of classes"
    labels_are_classes: ClassVar[bool] = True
    score: ClassVar[str] = "Dice"

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int) or isinstance(self.num_classes, bool):
            raise TypeError(f"`num_classes` must be a whole number, got {self.num_classes!r}.")
        if self.num_classes < 2:
            raise ValueError(
                f"`num_classes` must be at least 2, background included, got {self.num_classes}."
            )
        self._check_thresholds("foreground_threshold")

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""
        if self.num_classes == 2:
            return ("foreground",)
        return ("background", *(f"class_{i}" for i in range(1, self.num_classes)))

    @property
    def tunable(self) -> tuple[Tunable, ...]:
        """The fields worth tuning."""
        if self.num_classes > 2:
            return ()
        return (
            Tunable(
                "foreground_threshold",
                "Foreground",
                "Lower: more foreground. Higher: only what is certain",
                *(0, 1, 0.01),
                grid=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            ),
        )

    @classmethod
    def for_maps(cls, count: int) -> Self:
        """Give the representation with `count` maps: 1 for two classes, else one each."""
        if count < 1 or count == 2:
            raise ValueError(
                f"A semantic network must have 1 map or at least 3, got {count}: two classes "
                "have one map, the foreground."
            )
        return cls(num_classes=2 if count == 1 else count)

    def loss(self, logits: "Tensor", target: "Tensor") -> "Tensor":
        """Cross-entropy and Dice loss of VM-UNet."""
        from vimunet.representations.losses import bce_dice_loss, ce_dice_loss

        return (bce_dice_loss if self.num_classes == 2 else ce_dice_loss)(logits, target)

    def activate(self, logits: "Tensor") -> "Tensor":
        """Turn logits into maps: each on its own, or all maps of a pixel with the sum 1."""
        return super().activate(logits) if self.num_classes == 2 else logits.float().softmax(dim=1)

    def encode(
        self, labels: ArrayLike, spacing: PerAxis[float] | None = None
    ) -> NDArray[np.float32]:
        """Turn classes into the maps that a network shall predict.

        Args:
            labels: ([z,] y, x) class of each pixel, integer in 0 ... num_classes - 1; a mask of
                true and false is class 1 and 0.
            spacing: Does not matter.

        Returns:
            (m, [z,] y, x) maps in the order of `channels`, 1 where the pixel has the class of the
            map and 0 elsewhere.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If a label is no class or the axes are not those of an image.

        Examples:
            >>> Semantic(num_classes=3).encode(np.array([[0, 2, 1]]))[:, 0]
            array([[1., 0., 0.],
                   [0., 0., 1.],
                   [0., 1., 0.]], dtype=float32)
        """
        labels = np.asarray(labels)
        labels = self._checked_labels(labels.astype(np.uint8) if labels.dtype == bool else labels)
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"`labels` must be classes below {self.num_classes}, got {labels.max()}. Set "
                "`num_classes` to the number of classes, background included; where labels number "
                "objects, or are 0 and 255, turn them into classes first."
            )
        classes = range(1, 2) if self.num_classes == 2 else range(self.num_classes)
        return np.stack([labels == i for i in classes]).astype(np.float32)

    def decode(self, maps: ArrayLike, spacing: PerAxis[float] | None = None) -> NDArray[np.int32]:
        """Turn maps into classes. Nothing is lost of perfect maps.

        Returns:
            ([z,] y, x) class of each pixel; between equal maps the lower class wins.
        """
        maps = self._checked_maps(maps)
        if self.num_classes == 2:
            return (maps[0] >= self.foreground_threshold).astype(np.int32)
        return maps.argmax(axis=0).astype(np.int32)
