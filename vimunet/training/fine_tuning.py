"""Fine-tune a model on a few images with labels, within minutes, on a CPU if need be.

`fine_tune` runs in the thread of its caller, reports each step and can be ended at any of them
without losing what was learnt. The training itself is `train`.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimunet.io.pairs import Sample
from vimunet.io.training_set import TrainingSet
from vimunet.models import Network
from vimunet.models.compiled import bfloat16_is_fast
from vimunet.overlay import stretch_contrast
from vimunet.scores import SCORES
from vimunet.segmentation.devices import choose_device
from vimunet.segmentation.model_file import TrainedModel, load_model, save_model
from vimunet.segmentation.predict import predict
from vimunet.training.config import TrainConfig
from vimunet.training.loop import Progress, train, training_crops

MOST_WITHOUT_HOLDING_OUT = 3
"""With more images than this, one of them is kept for the score."""

_CROP_SIZE = {2: 256, 3: 64}
_PREVIEWS = 10
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Preview:
    """What the network makes of one crop.

    Attributes:
        image: (y, x, 3) colours in [0, 1].
        labels: (y, x) what it shall find, as far as its maps can tell objects apart.
        found: (y, x) what it finds.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    found: NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """How far a fine-tuning is.

    Attributes:
        phase: "before" and "after": images are scored with the old and the new model.
        iteration: Steps done in this phase: images scored, or iterations of the training.
        loss: Loss of the iteration; None while images are scored.
        seconds: Time since the start.
        seconds_left: How long this phase will go on, estimated.
        preview: A few crops to look at, now and then in the training.
    """

    phase: Literal["before", "training", "after"]
    iteration: int
    loss: float | None
    seconds: float
    seconds_left: float
    preview: Sequence[Preview] = ()


@dataclass(frozen=True)
class FineTuned:
    """Result of `fine_tune`.

    Attributes:
        path: The new model file.
        trained_on: Names of the images that the model learnt from.
        scored_on: Names of the images of both scores.
        held_out: Whether the images of the scores took no part in the training. If they did, the
            score says how well the corrections were learnt, not how well the model does on others.
        score: Name of the score, "mSA" for objects.
        before: Its mean with the old model; NaN if the scoring was ended early.
        after: The same with the new model.
        iterations: Steps of the training.
        seconds: Time in all.
    """

    path: Path
    trained_on: tuple[str, ...]
    scored_on: tuple[str, ...]
    held_out: bool
    score: str
    before: float
    after: float
    iterations: int
    seconds: float


Tell = Callable[[Step], bool | None]


def fine_tune(
    model: TrainedModel,
    samples: Sequence[Sample] | str | Path,
    output: str | Path,
    minutes: float = 5.0,
    progress: Tell | None = None,
    device: str = "auto",
    name: str | None = None,
    **settings: Any,
) -> FineTuned:
    """Fine-tune all weights of a model on a few images with labels.

    With more than three images the last one is held out: it takes no part in the training, and
    the scores before and after are those of this image. The learning rate falls along a cosine
    that ends with the time, so the number of steps is chosen by how fast this machine is.

    Args:
        model: The model to start from; it stays as it is.
        samples: Images with labels, or the folder of a `TrainingSet`.
        output: Folder for the new model, `NAME.safetensors`, and for the record of its training,
            the folder `NAME_training` (loss curve, previews, settings).
        minutes: Time to train; the scores come on top.
        progress: Called after each step. If it returns True, the phase ends at once: what was
            learnt is saved, the score that is being measured is given up.
        device: "auto", "cpu", "cuda" or "mps".
        name: Name of the new model; None makes one of the folder of the training set and the time.
            A model of that name is not replaced: the new one gets a number.
        **settings: Settings of the training that shall differ, see `TrainConfig`.

    Returns:
        Where the new model is and what it has learnt.

    Raises:
        ValueError: If there is no image to learn from.
    """
    started = time.perf_counter()
    title = "fine_tuned"
    if isinstance(samples, str | Path):
        title, where = Path(samples).resolve().name, f" in {samples}"
        samples = TrainingSet(samples).samples()
    else:
        where = ""
    if not samples:
        raise ValueError(
            f"`samples` must hold at least one image with labels, got none{where}. Correct an "
            "image and add it first."
        )
    if not minutes > 0:
        raise ValueError(f"`minutes` must be positive, got {minutes}.")
    held_out = list(samples[-1:]) if len(samples) > MOST_WITHOUT_HOLDING_OUT else []
    learnt = samples[: len(samples) - len(held_out)]
    scored = held_out or samples
    path, run = _free_paths(Path(output), name or f"{title}_{time.strftime('%Y-%m-%d_%H-%M')}")
    run_device = choose_device(device)
    report = _Report(progress or (lambda _: False), started, model)

    before = _score(model, scored, run_device, report, "before")
    network = copy.deepcopy(model.network).cpu()
    fast = run_device.type == "cpu" and bfloat16_is_fast()
    config = TrainConfig(
        output=run,
        crop_size=_crop_size(network),
        batch_size=2,
        lr=1e-3,  # more learns a new kind of image sooner, and forgets the old ones sooner
        optimizer="adamw",
        weight_decay=0.01,
        schedule="cosine",
        precision="bfloat16" if fast else "float32",
        normalization=model.normalization,
        spacing=model.spacing,
        val_crops=3,
        val_images=0,
        rotations=True,
        augment=False,  # images of one kind: measured, see experiments/retraining.py
        max_minutes=minutes,
        workers=0,  # processes cannot be forked safely from a program with windows
        device=run_device.type,
        training_data=f"retrained on {len(learnt)} corrected images",
        licence=str(model.info.get("licence", "")),
    )
    config = replace(config, **settings)
    if "iterations" not in settings:
        pace = _seconds_per_step(network, model, learnt, config, run_device)
        config = replace(config, iterations=max(1, round(60 * minutes / pace)))
    if "validation_interval" not in settings:
        config = replace(config, validation_interval=max(1, config.iterations // _PREVIEWS))
    train(network, model.representation, learnt, held_out or learnt, config, report.training)

    trained_on, scored_on = ([sample.name for sample in part] for part in (learnt, scored))
    origin = {
        "trained_on": trained_on,
        "scored_on": scored_on,
        "held_out": bool(held_out),
        "started_from": model.info,
    }
    newest = load_model(run / "last.safetensors")
    new = replace(newest, info={**newest.info, **origin})
    save_model(path, new)
    for name_of_copy in ("last.safetensors", "best.safetensors", "training_state.pt"):
        (run / name_of_copy).unlink(missing_ok=True)
    after = _score(new, scored, run_device, report, "after")
    scores = {k: v for k, v in (("before", before), ("after", after)) if math.isfinite(v)}
    save_model(path, replace(new, info={**new.info, model.representation.score: scores}))
    return FineTuned(
        path=path,
        trained_on=tuple(trained_on),
        scored_on=tuple(scored_on),
        held_out=bool(held_out),
        score=model.representation.score,
        before=before,
        after=after,
        iterations=report.iterations,
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Report:
    """Passes on what happens, as `Step`."""

    tell: Tell
    started: float
    model: TrainedModel
    iterations: int = field(default=0)

    def training(self, progress: Progress) -> bool:
        self.iterations = progress.iteration
        step = Step(
            "training",
            progress.iteration,
            progress.loss,
            time.perf_counter() - self.started,
            progress.seconds_left,
            [self._preview(*crop) for crop in progress.preview],
        )
        return bool(self.tell(step))

    def scored(self, phase: Literal["before", "after"], done: int, total: int, took: float) -> bool:
        seconds = time.perf_counter() - self.started
        left = (total - done) * took / max(done, 1)
        return bool(self.tell(Step(phase, done, None, seconds, left)))

    def _preview(self, image: Tensor, target: Tensor, maps: Tensor) -> Preview:
        decode = self.model.representation.decode
        pixels = np.moveaxis(image.numpy(), 0, -1)
        pair = decode(target.numpy()), decode(maps.numpy())
        if pixels.ndim == 4:  # of a volume, the section in the middle
            middle = len(pixels) // 2
            pixels, pair = pixels[middle], (pair[0][middle], pair[1][middle])
        return Preview(stretch_contrast(pixels), *pair)


def _score(
    model: TrainedModel,
    samples: Sequence[Sample],
    device: torch.device,
    report: _Report,
    phase: Literal["before", "after"],
) -> float:
    """Give the mean score, NaN if it is given up."""
    scores = []
    started = time.perf_counter()
    for sample in samples:
        image, labels = sample.read()
        if labels is None:
            raise ValueError(f"{sample.name}: fine-tuning needs labels, this sample has none.")
        scores.append(score_image(model, image, labels, device))
        if report.scored(phase, len(scores), len(samples), time.perf_counter() - started):
            break
    return float(np.mean(scores)) if len(scores) == len(samples) else math.nan


def score_image(
    model: TrainedModel, image: NDArray, labels: NDArray, device: str | torch.device = "auto"
) -> float:
    """Segment an image and compare it with its labels.

    Args:
        model: Any model.
        image: Axes of the network, channels may follow.
        labels: The same axes, integer, 0 background.
        device: As for `predict`.

    Returns:
        The score that its representation names, in [0, 1]; for models without foreground map only
        where `labels` is not 0.
    """
    representation = model.representation
    found = representation.decode(predict(image, model, device=device))
    measure = SCORES[representation.score].measure
    return measure(found, labels, not representation.has_background)[0]


def _crop_size(network: Network) -> tuple[int, ...]:
    """Give the size of a crop, less than usual if the network does not take that."""
    ndim = len(network.axes)
    largest = network.max_size or (_CROP_SIZE[ndim],) * ndim
    return tuple(
        max(min(_CROP_SIZE[ndim], most) // step, 1) * step
        for most, step in zip(largest, network.stride, strict=True)
    )


def _seconds_per_step(
    network: Network,
    model: TrainedModel,
    samples: Sequence[Sample],
    config: TrainConfig,
    device: torch.device,
) -> float:
    """Measure how long a step of the training takes; the fastest of a few, the first is slow."""
    length = _TIMED_STEPS * config.batch_size
    crops = training_crops(samples, network, model.representation, config, length)
    tried = copy.deepcopy(network).to(device).train()
    seconds = []
    for step in range(_TIMED_STEPS):
        started = time.perf_counter()
        items = [crops[step * config.batch_size + i] for i in range(config.batch_size)]
        images, targets = (torch.stack(part).to(device) for part in zip(*items, strict=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = model.representation.loss(tried(images), targets)
        loss.backward()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _free_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Give the paths of model file and record that do not exist yet."""
    number = 1
    while True:
        numbered = name if number == 1 else f"{name}_{number}"
        model, run = folder / f"{numbered}.safetensors", folder / f"{numbered}_training"
        if not model.exists() and not run.exists():
            return model, run
        number += 1
