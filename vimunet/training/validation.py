"""How good a network in training is: loss on fixed crops, scores of whole images.

Whole images go the same way as those of a user: `predict`, then `decode`. Several processes share
the work, and each of them learns the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from vimunet.axes import PerAxis
from vimunet.io.pairs import Sample
from vimunet.messages import naming
from vimunet.representations import Representation
from vimunet.scores import SCORES
from vimunet.segmentation.model_file import TrainedModel
from vimunet.segmentation.predict import predict
from vimunet.training.crops import RandomCrops

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

_SEED = 0  # not that of the training: all runs are judged by the same crops
_PREVIEW_CROPS = 3

Preview = tuple[Tensor, Tensor, Tensor]
"""Image (c, [z,] y, x), target maps and predicted maps (m, [z,] y, x) of a crop."""


@dataclass(frozen=True)
class Score:
    """Result of a validation; NaN if the loss is not finite.

    Attributes:
        loss: Mean loss of the crops.
        on_images: Mean scores of the whole images, the one that decides first; empty if none were
            segmented. See `vimunet.scores.SCORES`.
    """

    loss: float = math.inf
    on_images: Mapping[str, float] = field(default_factory=dict)

    def is_better_than(self, other: "Score") -> bool:
        """Compare the score on images, then the loss. Infinity and NaN are never better."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[float, float]:
        decides = next(iter(self.on_images.values()), math.nan)
        loss = -self.loss
        return (
            decides if math.isfinite(decides) else -math.inf,
            loss if math.isfinite(loss) else -math.inf,
        )

    def as_dict(self) -> dict[str, float]:
        """Give all numbers by the names that they have in logs and files: val_loss, val_mSA, ..."""
        return {
            "val_loss": self.loss,
            **{f"val_{name}": value for name, value in self.on_images.items()},
        }

    @classmethod
    def from_dict(cls, numbers: Mapping[str, float | None]) -> "Score":
        """Undo `as_dict`."""
        known = {name: value for name, value in numbers.items() if value is not None}
        loss = known.pop("val_loss", math.inf)
        return cls(loss, {name.removeprefix("val_"): value for name, value in known.items()})


def measured(representation: Representation) -> tuple[str, ...]:
    """Name what a validation of this representation measures, as in `Score.as_dict`."""
    names = SCORES[representation.score].names
    return ("val_loss", *(f"val_{name}" for name in names))


class Validation:
    """Fixed crops for the loss, whole images for the scores, both shared among the processes.

    Args:
        fabric: Tells process and device.
        model: Network and representation to judge.
        samples: Images with labels.
        crop_size: Size of the crops in pixels.
        num_crops: Number of crops; they are read once and kept in memory.
        num_images: Most images to segment, taken at equal steps from `samples`; 0 for none.
        precision: As for `predict`.
        spacing: Size of a voxel along each axis, for samples that do not tell it.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: TrainedModel,
        samples: Sequence[Sample],
        crop_size: PerAxis[int],
        num_crops: int,
        num_images: int,
        precision: str,
        spacing: PerAxis[float] | None = None,
    ):
        self._fabric = fabric
        self._model = model
        self._precision, self._spacing = precision, spacing
        rank, processes = fabric.global_rank, fabric.world_size
        crops = RandomCrops(
            samples,
            crop_size,
            model.representation,
            _SEED,
            model.network.in_channels,
            length=num_crops,
            axes=model.axes,
            normalization=model.normalization,
            spacing=spacing,
        )
        self._crops = [crops[i] for i in range(rank, num_crops, processes)]
        number = min(num_images, len(samples))
        chosen = [samples[i * len(samples) // number] for i in range(number)]
        self._has_images = number > 0
        self._samples = chosen[rank::processes]

    def run(self) -> tuple[Score, list[Preview]]:
        """Return the score, and image, target and maps of a few crops to look at."""
        losses: list[float] = []
        preview: list[Preview] = []
        network, representation = self._model.network, self._model.representation
        network.eval()
        with torch.inference_mode(), self._fabric.autocast():
            for image, target in self._crops:
                logits = network(self._fabric.to_device(image)[None]).float().cpu()
                losses.append(representation.loss(logits, target[None]).item())
                if len(preview) < _PREVIEW_CROPS:
                    maps = representation.activate(logits)[0]
                    preview.append((image, target, maps.nan_to_num()))
        network.train()
        loss = self._mean(losses)
        if not self._has_images:
            return Score(loss), preview
        names = SCORES[representation.score].names
        finite = math.isfinite(loss)  # if it is not, `predict` would raise
        scores = [self._score(s) for s in self._samples] if finite else []
        means = {
            name: self._mean([score[i] for score in scores]) if finite else math.nan
            for i, name in enumerate(names)
        }
        return Score(loss, means), preview

    def _score(self, sample: Sample) -> tuple[float, ...]:
        """Score one whole image."""
        image, labels = sample.read()
        if labels is None:
            raise ValueError(f"{sample.name}: validation needs labels, this sample has none.")
        with naming(sample.name):
            maps = predict(
                image, self._model, device=self._fabric.device, precision=self._precision
            )
        spacing = self._spacing if sample.spacing is None else sample.spacing
        representation = self._model.representation
        found = representation.decode(maps, spacing)
        unjudged = not representation.has_background
        return SCORES[representation.score].measure(found, labels, unjudged)

    def _mean(self, values: list[float]) -> float:
        """Mean over the values of all processes."""
        parts = torch.tensor([float(sum(values)), len(values)], device=self._fabric.device)
        total, number = cast(Tensor, self._fabric.all_reduce(parts, reduce_op="sum")).tolist()
        return total / number
