"""How good a network in training is: loss on fixed crops, mSA or Dice and IoU on whole images.

Whole images go the same road as those of a user: `predict`, then `decode`. Several processes share
the work, and each of them learns the result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vimunet.checkpoint import TrainedModel
from vimunet.data import Sample
from vimunet.data.crops import RandomCrops
from vimunet.evaluation import mean_segmentation_accuracy
from vimunet.losses import loss_for
from vimunet.messages import naming
from vimunet.prediction import activate, predict
from vimunet.representation import Representation, Semantic
from vimunet.semantic_evaluation import dice_and_iou

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

_SEED = 0  # not that of the training: all runs are judged by the same crops
_PREVIEW_CROPS = 3


@dataclass(frozen=True)
class Score:
    """Result of a validation. What was not measured is None; NaN if the loss is not finite.

    Attributes:
        val_loss: Mean loss of the crops.
        val_mSA: Mean mSA of the whole images, where labels are objects.
        val_Dice: Mean Dice of the whole images, where labels are classes.
        val_IoU: The same for IoU.
    """

    val_loss: float = math.inf
    val_mSA: float | None = None  # noqa: N815, as it is written everywhere
    val_Dice: float | None = None  # noqa: N815
    val_IoU: float | None = None  # noqa: N815

    def is_better_than(self, other: "Score") -> bool:
        """Compare mSA or Dice, then loss. Infinity and NaN are never better than anything."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        on_images = self.val_mSA if self.val_Dice is None else self.val_Dice
        loss = -self.val_loss
        return (
            on_images if on_images is not None and math.isfinite(on_images) else -math.inf,
            loss if math.isfinite(loss) else -math.inf,
        )


def measured(representation: Representation) -> tuple[str, ...]:
    """Name the fields of `Score` that a validation of this representation fills."""
    if isinstance(representation, Semantic):
        return ("val_loss", "val_Dice", "val_IoU")
    return ("val_loss", "val_mSA")


class Validation:
    """Fixed crops for the loss, whole images for the scores, both shared among the processes.

    Args:
        fabric: Tells process and device.
        model: Network and representation to judge.
        samples: Images with labels.
        crop_size: Side of the crops in pixels.
        num_crops: Number of crops; they are read once and kept in memory.
        num_images: Most images to segment, taken at equal steps from `samples`; 0 for none.
        precision: As for `predict`.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: TrainedModel,
        samples: Sequence[Sample],
        crop_size: int,
        num_crops: int,
        num_images: int,
        precision: str,
    ):
        self._fabric = fabric
        self._model = model
        network: Any = model.network  # Any: its attributes are named in `vimunet.models`
        self._network = network
        self._loss = loss_for(model.representation)
        self._precision = precision
        rank, processes = fabric.global_rank, fabric.world_size
        crops = RandomCrops(
            samples,
            crop_size,
            model.representation,
            _SEED,
            network.in_channels,
            length=num_crops,
        )
        self._crops = [crops[i] for i in range(rank, num_crops, processes)]
        number = min(num_images, len(samples))
        chosen = [samples[i * len(samples) // number] for i in range(number)]
        self._has_images = number > 0
        self._samples = chosen[rank::processes]

    def run(self) -> tuple[Score, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return the score, and (image, target, maps) of a few crops to look at."""
        losses: list[float] = []
        preview: list[tuple[Tensor, Tensor, Tensor]] = []
        self._network.eval()
        with torch.inference_mode(), self._fabric.autocast():
            for image, target in self._crops:
                logits = self._network(self._fabric.to_device(image)[None]).float().cpu()
                losses.append(self._loss(logits, target[None]).item())
                if len(preview) < _PREVIEW_CROPS:
                    maps = activate(logits, self._model.representation.activation)[0]
                    preview.append((image, target, maps.nan_to_num()))
        self._network.train()
        loss = self._mean(losses)
        if not self._has_images:
            return Score(loss), preview
        names = measured(self._model.representation)[1:]
        finite = math.isfinite(loss)  # if it is not, `predict` would raise
        scores = [self._score(s) for s in self._samples] if finite else []
        means = {
            name: self._mean([score[i] for score in scores]) if finite else math.nan
            for i, name in enumerate(names)
        }
        return Score(loss, **means), preview

    def _score(self, sample: Sample) -> tuple[float, ...]:
        """Score one image by mSA, or by Dice and IoU."""
        image, labels = sample.read()
        if labels is None:
            raise ValueError(f"{sample.name}: validation needs labels, this sample has none.")
        with naming(sample.name):
            maps = predict(
                image, self._model, device=self._fabric.device, precision=self._precision
            )
        representation = self._model.representation
        found = representation.decode(maps)
        if isinstance(representation, Semantic):
            return dice_and_iou(found, labels, representation.num_classes)
        unjudged = not representation.has_background
        return (mean_segmentation_accuracy(found, labels, labelled_pixels_only=unjudged),)

    def _mean(self, values: list[float]) -> float:
        """Mean over the values of all processes."""
        parts = torch.tensor([float(sum(values)), len(values)], device=self._fabric.device)
        total, number = cast(Tensor, self._fabric.all_reduce(parts, reduce_op="sum")).tolist()
        return total / number
