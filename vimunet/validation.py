"""How good a network in training is: loss on fixed crops, mSA on whole images.

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
from vimunet.prediction import predict

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

_SEED = 0  # not that of the training: all runs are judged by the same crops
_PREVIEW_CROPS = 3


@dataclass(frozen=True)
class Score:
    """Result of a validation.

    Attributes:
        val_loss: Mean loss of the crops.
        val_mSA: Mean mSA of the whole images; None without images, NaN if the loss is not finite.
    """

    val_loss: float = math.inf
    val_mSA: float | None = None  # noqa: N815, as it is written everywhere

    def is_better_than(self, other: "Score") -> bool:
        """Compare mSA, then loss. Infinity and NaN are never better than anything."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        msa, loss = self.val_mSA, -self.val_loss
        return (
            msa if msa is not None and math.isfinite(msa) else -math.inf,
            loss if math.isfinite(loss) else -math.inf,
        )


class Validation:
    """Fixed crops for the loss, whole images for mSA, both shared among the processes.

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
                    preview.append((image, target, logits[0].sigmoid().nan_to_num()))
        self._network.train()
        loss, msa = self._mean(losses), None
        if self._has_images:
            finite = math.isfinite(loss)  # if it is not, `predict` would raise
            msa = self._mean([self._score(s) for s in self._samples]) if finite else math.nan
        return Score(loss, msa), preview

    def _score(self, sample: Sample) -> float:
        image, labels = sample.read()
        if labels is None:
            raise ValueError(f"{sample.name}: validation needs labels, this sample has none.")
        maps = predict(image, self._model, device=self._fabric.device, precision=self._precision)
        return mean_segmentation_accuracy(
            self._model.representation.decode(maps),
            labels,
            # Without a foreground map no pixel is predicted as background, so none is judged.
            labelled_pixels_only="foreground" not in self._model.representation.channels,
        )

    def _mean(self, values: list[float]) -> float:
        """Mean over the values of all processes."""
        parts = torch.tensor([float(sum(values)), len(values)], device=self._fabric.device)
        total, number = cast(Tensor, self._fabric.all_reduce(parts, reduce_op="sum")).tolist()
        return total / number
