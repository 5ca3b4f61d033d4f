"""Training: from samples to a model file, in one loop.

`train` is the whole loop. What it writes is in `vimunet.training_files`, what it minimises in
`vimunet.losses`, what it reads in `vimunet.data`. One process or several (started with
`torchrun`) run the same code; lightning-fabric puts the network on its device and averages the
gradients.

Training is reproducible: iteration t of process r uses crops (t * processes + r) * batch_size,
..., and draws its random numbers from (seed, t, r). A continued run therefore computes what an
uninterrupted one would have: the same numbers on a CPU, up to the order of sums on a GPU.
"""

import logging
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from vimunet import __version__
from vimunet.checkpoint import TrainedModel
from vimunet.data import Sample
from vimunet.data.crops import RandomCrops
from vimunet.losses import loss_for
from vimunet.models.compiled import memory_kept
from vimunet.representation import Representation
from vimunet.training_files import RunFolder, code_commit, describe_run
from vimunet.validation import Score, Validation, measured

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

_FABRIC_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {
    "float32": "32-true",
    "bf16": "bf16-mixed",
}
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_PREDICTION_PRECISIONS = {"float32": "float32", "bf16": "bfloat16"}

_NOT_IN_MODEL_FILE = ("output", "resume", "workers", "device")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training. The defaults are the paper's recipe.

    Attributes:
        output: Folder of the run, see `vimunet.training_files`. New or empty, unless `resume`.
        iterations: Number of steps of the optimizer.
        max_minutes: Stop after this time, validation and earlier parts of the run included.
        crop_size: Side of the training crops in pixels.
        batch_size: Crops per iteration and process.
        lr: Learning rate of the optimizer, at the start.
        optimizer: "adam" or "adamw" (Adam with decoupled weight decay).
        weight_decay: Of the optimizer.
        schedule: How the learning rate falls: "plateau", see `lr_factor` and `lr_patience`, or
            "cosine", see `lr_min` and `lr_half_period`.
        precision: "float32" or "bf16" (automatic mixed precision).
        seed: Decides crops and dropped paths. (The weights are those that `network` has.)
        resume: Continue the run in `output`.
        validation_interval: Iterations between two validations.
        val_crops: Number of fixed crops for the validation loss.
        val_images: Most whole validation images to segment and score; 0 for none.
        rotations: Also rotate the crops by multiples of 90 degrees; flips are always on.
        free_rotation: Probability that a crop is also rotated by any angle, see `RandomCrops`.
        augment: Also change scale, contrast, sharpness, noise and illumination of the crops.
        zoom: With `augment`, crops are magnified by a factor between these two.
        min_objects: Fewest different labels in a training crop, see `RandomCrops`.
        lr_factor: "plateau": the learning rate is multiplied by this ...
        lr_patience: ... after more than this many validations without a lower validation loss.
        lr_min: "cosine": the learning rate goes down to this along half a cosine ...
        lr_half_period: ... within so many iterations, then up again, and so on. None: within
            `iterations`, so that it only goes down.
        workers: Processes that prepare crops; None chooses, 0 prepares them in this process.
        device: "auto", "cpu", "cuda" or "mps".
        training_data: What the network is trained on, in words, for the model file.
        licence: Licence of the resulting model, for the model file.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, trained with torch-em.
        Deviations: the validation crops are fixed instead of drawn anew each time, and the best
        model is the one with the best mSA on whole images where there are some.
    """

    output: str | Path
    iterations: int = 100_000
    max_minutes: float | None = None
    crop_size: int = 512
    batch_size: int = 2
    lr: float = 1e-4
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "plateau"
    precision: str = "float32"
    seed: int = 0
    resume: bool = False
    validation_interval: int = 1000
    val_crops: int = 32
    val_images: int = 8
    rotations: bool = False
    free_rotation: float = 0.0
    augment: bool = False
    zoom: tuple[float, float] = (0.5, 2.0)
    min_objects: int = 0
    lr_factor: float = 0.9
    lr_patience: int = 10
    lr_min: float = 1e-5
    lr_half_period: int | None = None
    workers: int | None = None
    device: str = "auto"
    training_data: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        for name in ("iterations", "crop_size", "batch_size", "validation_interval", "val_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("val_images", "seed", "min_objects", "lr_patience", "workers"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"`lr` must be positive, got {self.lr}.")
        if not 0 < self.lr_factor < 1:
            raise ValueError(f"`lr_factor` must lie between 0 and 1, got {self.lr_factor}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` must be 0 or more, got {self.weight_decay}.")
        if not 0 <= self.free_rotation <= 1:
            raise ValueError(f"`free_rotation` must lie in [0, 1], got {self.free_rotation}.")
        if self.schedule == "cosine" and not 0 <= self.lr_min <= self.lr:
            raise ValueError(f"`lr_min` must lie between 0 and `lr` {self.lr}, got {self.lr_min}.")
        if self.lr_half_period is not None and self.lr_half_period < 1:
            raise ValueError(f"`lr_half_period` must be at least 1, got {self.lr_half_period}.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"`max_minutes` must be positive, got {self.max_minutes}.")
        for name, known in (
            ("precision", tuple(_FABRIC_PRECISIONS)),
            ("optimizer", tuple(_OPTIMIZERS)),
            ("schedule", ("plateau", "cosine")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}. Known: {', '.join(known)}."
                )


@dataclass(frozen=True)
class Progress:
    """How far a training is, after one iteration.

    Attributes:
        iteration: Iterations done.
        loss: Loss of this iteration, the mean over the processes.
        seconds: Time so far, earlier parts of the run included.
        seconds_left: How long the rest will take, estimated.
        score: Result of the validation, where there was one.
        preview: Image (c, y, x), target maps and predicted maps (m, y, x) of a few crops, where
            there was a validation.
    """

    iteration: int
    loss: float
    seconds: float
    seconds_left: float
    score: Score | None = None
    preview: Sequence[tuple[Tensor, Tensor, Tensor]] = ()


def train(
    network: nn.Module,
    representation: Representation,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    config: TrainConfig,
    progress: Callable[[Progress], bool | None] | None = None,
) -> Path:
    """Train a network.

    SIGINT (Ctrl-C) and SIGTERM end the training after the current iteration: the state is saved,
    and only then the signal takes its usual effect, or else KeyboardInterrupt is raised.

    Args:
        network: From `build_model`, with one output channel for each map. Trained in place.
        representation: What the network learns to predict.
        train_samples: Images with labels to learn from.
        val_samples: Images with labels that decide which model is the best.
        config: Settings.
        progress: Called after each iteration, instead of the bar on the screen. If it returns
            True the training ends at once, without another validation; model and state are
            saved as at any other end. With several processes all of them need one.

    Returns:
        Path of the best model. "Best" is the highest mSA (for classes, the highest Dice) on whole
        validation images, with the thresholds of `representation`; between equal ones, or without
        images, the lowest validation loss. Should no validation have given a finite score, the
        newest model.

    Raises:
        ValueError: If network, maps, crops and samples do not fit together, `output` is not
            empty, or a run is continued with other settings.
        FileNotFoundError: If there is no run to resume.
        FloatingPointError: If loss or gradient is not finite. The state before that step and the
            crops are saved.
    """
    _check_fit(network, representation, train_samples, val_samples, config)
    fabric = _start_fabric(config)
    settings = describe_run(
        network,
        representation,
        train_samples,
        val_samples,
        asdict(config)
        | {
            "output": str(config.output),
            "processes": fabric.world_size,
            "lr_half_period": _half_period(config),
        },
    )
    run = RunFolder(Path(config.output), settings, config.resume, writes=fabric.is_global_zero)
    fabric.barrier()  # nobody writes before everybody has looked into the folder

    optimizer = _OPTIMIZERS[config.optimizer](
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    scheduler = ReduceLROnPlateau(optimizer, "min", config.lr_factor, config.lr_patience)
    model, stepper = fabric.setup(network, optimizer)  # the same parameters, wrapped by Fabric
    state = _State(network, optimizer, scheduler)
    if config.resume:
        state.load(run.load_state())
    loss_function = loss_for(representation)
    validation = Validation(
        fabric,
        TrainedModel(network, representation),
        val_samples,
        config.crop_size,
        config.val_crops,
        config.val_images,
        _PREDICTION_PRECISIONS[config.precision],
    )
    crops = _crops(train_samples, network, representation, config, fabric)
    loader = _loader(crops, config, state, fabric)
    origin = {
        "training_data": config.training_data,
        "licence": config.licence,
        "config": {name: v for name, v in settings.items() if name not in _NOT_IN_MODEL_FILE},
        "version": __version__,
        "commit": code_commit(),
    }
    time_limit = math.inf if config.max_minutes is None else 60 * config.max_minutes
    started = time.perf_counter() - state.seconds
    reached = _limit_reached(state, config, time_limit)
    stop = reached is not None
    if fabric.is_global_zero and stop:
        _logger.warning("The run in %s %s", config.output, reached)
    elif fabric.is_global_zero and not any(_has_objects(sample) for sample in train_samples):
        _logger.warning(
            "No object in any of the %d label images to train on: they are 0 everywhere.",
            len(train_samples),
        )
    interrupted = 0.0
    network.train()

    columns = ("iteration", "loss", "lr", *measured(representation), "seconds", "data_seconds")

    with (
        closing(_batches(loader)) as batches,
        run.open_log(
            columns, state.iteration, config.iterations, time_limit, bar=progress is None
        ) as log,
        _Signals() as signals,
        memory_kept(),
        torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []),
    ):
        if not config.resume:
            run.save_state(state.as_dict())  # or what is killed early could not be continued
        while not stop:
            asked = time.perf_counter()
            images, targets = fabric.to_device(next(batches))
            data_seconds = time.perf_counter() - asked

            torch.manual_seed(_random_seed(config.seed, state.iteration, fabric.global_rank))
            buffers = [buffer.clone() for buffer in network.buffers()]
            loss = loss_function(model(images), targets)
            stepper.zero_grad()
            fabric.backward(loss)

            # Each process learns what happened in any of them, so that all do the same next.
            late = time.perf_counter() - started >= time_limit
            mean_loss, norm, interrupted, overtime = _average(
                fabric, loss, _gradient_norm(network), signals.received is not None, late
            )
            if not math.isfinite(mean_loss + norm):
                for buffer, before in zip(network.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                run.save_state(state.as_dict())
                items = _items(state.iteration, config, fabric)
                names = [crops.name(item) for item in items]
                path = run.save_crops(
                    state.iteration, fabric.global_rank, images, targets, items, names
                )
                fabric.barrier()
                raise FloatingPointError(
                    f"Iteration {state.iteration + 1} gave the loss {mean_loss} and a gradient of "
                    f"norm {norm}. Its crops (of {', '.join(names)}) are in {path}, the state "
                    "before it is kept. Look at the crops; if these images are wrong, repair them "
                    "and continue with `resume` (--resume). If they are not, start a new run with "
                    "a lower `lr` or in float32 (from the last model of this one, if there is one)."
                )
            if config.schedule == "cosine":
                for group in optimizer.param_groups:
                    group["lr"] = cosine_learning_rate(config, state.iteration)
            lr = optimizer.param_groups[0]["lr"]
            stepper.step()
            state.iteration += 1

            stop = bool(interrupted or overtime) or state.iteration >= config.iterations
            due = state.iteration % config.validation_interval == 0
            score = None
            preview: list[tuple[Tensor, Tensor, Tensor]] = []
            if due or (stop and not interrupted):
                for buffer in network.buffers():  # running means of each process: take the first's
                    buffer.copy_(fabric.broadcast(buffer.cpu()))
                score, preview = validation.run()
                run.save_preview(state.iteration, preview, representation)
                if score.is_better_than(state.best):
                    state.best = score
                    found = {name: getattr(score, name) for name in measured(representation)}
                    info = {**origin, "iteration": state.iteration, **found}
                    run.save_model("best", TrainedModel(network, representation, info=info))
                # Not when it just stops: continued, the run must be the same.
                if due and config.schedule == "plateau":
                    scheduler.step(score.val_loss)
            state.seconds = time.perf_counter() - started
            times = {"seconds": state.seconds, "data_seconds": data_seconds}
            scores = {name: getattr(score, name, None) for name in measured(representation)}
            left = log.write(
                {"iteration": state.iteration, "loss": mean_loss, "lr": lr, **scores, **times}
            )
            if progress is not None:
                told = Progress(state.iteration, mean_loss, state.seconds, left, score, preview)
                stop |= _average(fabric, float(progress(told) or False))[0] > 0
            if due or stop:
                info = {**origin, "iteration": state.iteration}
                run.save_model("last", TrainedModel(network, representation, info=info))
                run.save_state(state.as_dict())

    if interrupted:
        _logger.info(
            "Stopped after iteration %d. Continue with `resume` (--resume).", state.iteration
        )
        signal.raise_signal(signals.received or signal.SIGTERM)
        raise KeyboardInterrupt  # where the signal has no effect: this is not a finished training
    fabric.barrier()  # the files are complete
    best = Path(config.output) / "best.safetensors"
    return best if best.exists() else best.with_name("last.safetensors")


@dataclass
class _State:
    """Everything that changes during a training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: ReduceLROnPlateau
    iteration: int = 0
    seconds: float = 0.0
    best: Score = field(default_factory=Score)

    def as_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": asdict(self.best),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.best = Score(**state["best"])


class _Signals:
    """Remembers SIGINT and SIGTERM instead of obeying; only the main thread may do this."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = number


def cosine_learning_rate(config: TrainConfig, iteration: int) -> float:
    """Give the learning rate of an iteration (from 0) with `schedule="cosine"`.

    lr_min + (lr - lr_min) * (1 + cos(pi * iteration / half period)) / 2

    Source:
        Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983, equation 5, without
        restarts. VM-UNet's changes once per epoch, with a half period of 50 epochs and 300 epochs
        in all, so that it ends as high as it began.
    """
    period = _half_period(config) or config.iterations
    wave = (1 + math.cos(math.pi * iteration / period)) / 2
    return config.lr_min + (config.lr - config.lr_min) * wave


def _half_period(config: TrainConfig) -> int | None:
    """Resolve `lr_half_period`, so that it is part of what must not change in a continued run."""
    if config.schedule == "cosine" and config.lr_half_period is None:
        return config.iterations
    return config.lr_half_period


def _limit_reached(state: _State, config: TrainConfig, seconds: float) -> str | None:
    """Say why a continued run has nothing left to do; None if it has."""
    if state.iteration >= config.iterations:
        done = f"has done {state.iteration} of {config.iterations} iterations already."
        if config.schedule == "cosine" and config.lr_half_period is None:
            return f"{done} Its cosine ends there: start a new run from its model instead."
        return f"{done} Raise `iterations` (--iterations) to continue it."
    if state.seconds >= seconds:
        return (
            f"has taken {state.seconds:.0f} of {seconds:.0f} s already ({state.iteration} "
            "iterations). Raise `max_minutes` (--max-minutes) to continue it."
        )
    return None


def _has_objects(sample: Sample) -> bool:
    labels = sample.read()[1]
    return labels is None or bool(labels.any())  # without labels, `RandomCrops` says what is wrong


def _start_fabric(config: TrainConfig) -> Fabric:
    """One process, or one of those that `torchrun` started."""
    processes, here = 1, 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=config.device,
        strategy="auto" if processes == 1 else "ddp",
        devices=here,
        num_nodes=processes // here,
        precision=_FABRIC_PRECISIONS[config.precision],
    )
    fabric.launch()
    return fabric


def _crops(
    samples: Sequence[Sample],
    network: Any,
    representation: Representation,
    config: TrainConfig,
    fabric: Fabric,
) -> RandomCrops:
    """All crops of the training, of every process."""
    return RandomCrops(
        samples,
        config.crop_size,
        representation,
        config.seed,
        network.in_channels,
        length=config.iterations * fabric.world_size * config.batch_size,
        rotations=config.rotations,
        free_rotation=config.free_rotation,
        augment=config.augment,
        zoom=config.zoom,
        min_objects=config.min_objects,
    )


def _loader(crops: RandomCrops, config: TrainConfig, state: _State, fabric: Fabric) -> DataLoader:
    """Read the batches of this process from the present iteration on."""
    workers = config.workers
    if workers is None:
        workers = min(8, max(1, (os.cpu_count() or 1) // 2 // fabric.world_size))
    return DataLoader(
        crops,
        batch_sampler=(
            _items(i, config, fabric) for i in range(state.iteration, config.iterations)
        ),
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # of its own, to leave the caller's alone
    )


def _batches(loader: DataLoader) -> Generator[Any, None, None]:
    """Give the batches; closed or after an error it has ended the workers, which obey no signal.

    An error of a worker is told without the worker's traceback.
    """
    try:
        yield from loader
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # which hold the workers
        _, told, message = str(error).rpartition("\nValueError: ")
        if told:
            raise ValueError(message.rstrip()) from None
        raise


def _items(iteration: int, config: TrainConfig, fabric: Fabric) -> list[int]:
    """Which items of `RandomCrops` this process sees in an iteration."""
    first = (iteration * fabric.world_size + fabric.global_rank) * config.batch_size
    return list(range(first, first + config.batch_size))


def _ignore_signals(worker: int) -> None:
    """Let the training process alone decide when to end: Ctrl-C reaches its workers too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _gradient_norm(network: nn.Module) -> Tensor:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def _average(fabric: Fabric, *values: Tensor | float) -> list[float]:
    """Mean of each value over the processes; NaN if it is NaN anywhere."""
    stacked = torch.stack(
        [torch.as_tensor(v, dtype=torch.float32, device=fabric.device).detach() for v in values]
    )
    return cast(Tensor, fabric.all_reduce(stacked, reduce_op="mean")).tolist()


def _random_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1, np.uint64)[0])


def _check_fit(
    network: Any,  # its attributes are named in `vimunet.models`
    representation: Representation,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    config: TrainConfig,
) -> None:
    channels = representation.channels
    if network.out_channels != len(channels):
        raise ValueError(
            f"`network` must predict {len(channels)} maps ({', '.join(channels)}), "
            f"got {network.out_channels}. Build it with out_channels={len(channels)}."
        )
    if config.crop_size % network.stride:
        rounded = -(-config.crop_size // network.stride) * network.stride
        raise ValueError(
            f"`crop_size` must be divisible by {network.stride}, got {config.crop_size}. "
            f"Use {rounded}."
        )
    if network.max_size is not None and config.crop_size > network.max_size:
        raise ValueError(
            f"`crop_size` must be at most {network.max_size} for this network, "
            f"got {config.crop_size}."
        )
    for name, samples in (("train_samples", train_samples), ("val_samples", val_samples)):
        if not samples:
            raise ValueError(f"`{name}` must hold at least one sample, got none.")
