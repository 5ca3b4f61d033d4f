"""Training: from samples to a model file, in one loop.

`train` is the whole loop, `_Training` its steps. What it writes is in `run_folder.py`, what it
minimises is said by the representation, what it reads is in `crops.py`. One process or several
(started with `torchrun`) run the same code; lightning-fabric puts the network on its device and
averages the gradients.

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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from vimunet.axes import per_axis, shown
from vimunet.io.pairs import Sample
from vimunet.models import Network
from vimunet.models.compiled import memory_kept
from vimunet.representations import Representation
from vimunet.segmentation.model_file import TrainedModel
from vimunet.training.config import TrainConfig, cosine_learning_rate
from vimunet.training.crops import RandomCrops
from vimunet.training.run_folder import RunFolder, code_commit, describe_run
from vimunet.training.validation import Preview, Score, Validation, measured

try:
    from lightning_fabric import Fabric
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

_FABRIC_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
}
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_NOT_IN_MODEL_FILE = ("output", "resume", "workers", "device")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a training is, after one iteration.

    Attributes:
        iteration: Iterations done.
        loss: Loss of this iteration, the mean over the processes.
        seconds: Time so far, earlier parts of the run included.
        seconds_left: How long the rest will take, estimated.
        score: Result of the validation, where there was one.
        preview: A few crops, where there was a validation.
    """

    iteration: int
    loss: float
    seconds: float
    seconds_left: float
    score: Score | None = None
    preview: Sequence[Preview] = ()


def train(
    network: Network,
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
        Path of the best model. "Best" is the highest score (mSA; for classes, Dice) on whole
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
    check_fit(network, representation, train_samples, val_samples, config)
    training = _Training(network, representation, train_samples, val_samples, config)
    training.say_what_is_odd(train_samples)
    with training.opened(bar=progress is None):
        while not training.ended:
            done = training.step()
            if training.due or (training.ended and not training.interrupted):
                training.validate()
            told = training.write_log(done)
            if progress is not None:
                training.end_if(bool(progress(told)))
            if training.due or training.ended:
                training.save()
    return training.finish()


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
            "best": self.best.as_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.best = Score.from_dict(state["best"])


@dataclass(frozen=True)
class _Step:
    """One iteration, done."""

    loss: float
    lr: float
    data_seconds: float


class _Training:
    """The steps of a training, and what they share.

    Attributes:
        ended: Whether no iteration is left to do.
        interrupted: Whether a signal ended it, in any of the processes.
    """

    def __init__(
        self,
        network: Network,
        representation: Representation,
        train_samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        config: TrainConfig,
    ):
        self.config, self._network, self._representation = config, network, representation
        self._fabric = fabric = _start_fabric(config)
        settings = describe_run(
            network,
            representation,
            train_samples,
            val_samples,
            asdict(config)
            | {
                "output": str(config.output),
                "processes": fabric.world_size,
                "lr_half_period": config.half_period,
            },
        )
        self._run = RunFolder(
            Path(config.output), settings, config.resume, writes=fabric.is_global_zero
        )
        fabric.barrier()  # nobody writes before everybody has looked into the folder

        optimizer = _OPTIMIZERS[config.optimizer](
            network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        scheduler = ReduceLROnPlateau(optimizer, "min", config.lr_factor, config.lr_patience)
        # the same parameters, wrapped by Fabric
        self._model, self._stepper = fabric.setup(network, optimizer)
        self._state = _State(network, optimizer, scheduler)
        if config.resume:
            self._state.load(self._run.load_state())
        self._spacing = _common_spacing(train_samples, config)
        self._validation = Validation(
            fabric,
            self._trained({}),
            val_samples,
            config.crop_size,
            config.val_crops,
            config.val_images,
            config.precision,
            config.spacing,
        )
        length = config.iterations * fabric.world_size * config.batch_size
        self._crops = training_crops(train_samples, network, representation, config, length)
        self._origin = {
            "training_data": config.training_data,
            "licence": config.licence,
            "config": {name: v for name, v in settings.items() if name not in _NOT_IN_MODEL_FILE},
            "version": __version__,
            "commit": code_commit(),
        }
        self._limit = math.inf if config.max_minutes is None else 60 * config.max_minutes
        self._started = time.perf_counter() - self._state.seconds
        self._score: Score | None = None
        self._preview: list[Preview] = []
        self.interrupted = False
        self._nothing_left = _limit_reached(self._state, config, self._limit)
        self.ended = self._nothing_left is not None

    def say_what_is_odd(self, samples: Sequence[Sample]) -> None:
        """Warn if there is nothing left to do, or nothing to learn."""
        if not self._fabric.is_global_zero:
            return
        if self._nothing_left is not None:
            _logger.warning("The run in %s %s", self.config.output, self._nothing_left)
        elif not any(_has_objects(sample) for sample in samples):
            _logger.warning(
                "No object in any of the %d label images to train on: they are 0 everywhere.",
                len(samples),
            )

    @contextmanager
    def opened(self, bar: bool) -> Iterator[None]:
        """Open log, crops and signals for as long as the training goes on."""
        config, state, fabric = self.config, self._state, self._fabric
        numbers = measured(self._representation)
        columns = ("iteration", "loss", "lr", *numbers, "seconds", "data_seconds")
        devices = [fabric.device] if fabric.device.type == "cuda" else []
        with ExitStack() as stack:
            loader = _loader(self._crops, config, state.iteration, fabric)
            self._batches = stack.enter_context(closing(_batches(loader)))
            self._log = stack.enter_context(
                self._run.open_log(
                    columns, state.iteration, config.iterations, self._limit, bar=bar
                )
            )
            self._signals = stack.enter_context(_Signals())
            stack.enter_context(memory_kept())
            stack.enter_context(torch.random.fork_rng(devices))
            self._network.train()
            if not config.resume:
                self._run.save_state(state.as_dict())  # or what is killed early could not go on
            yield

    def step(self) -> _Step:
        """Do one iteration."""
        config, fabric, state, network = self.config, self._fabric, self._state, self._network
        asked = time.perf_counter()
        images, targets = fabric.to_device(next(self._batches))
        data_seconds = time.perf_counter() - asked

        torch.manual_seed(_random_seed(config.seed, state.iteration, fabric.global_rank))
        buffers = [buffer.clone() for buffer in network.buffers()]
        loss = self._representation.loss(self._model(images), targets)
        self._stepper.zero_grad()
        fabric.backward(loss)

        # Each process learns what happened in any of them, so that all do the same next.
        signalled = self._signals.received is not None
        late = time.perf_counter() - self._started >= self._limit
        mean_loss, norm, interrupted, overtime = _average(
            fabric, loss, _gradient_norm(network), signalled, late
        )
        if not math.isfinite(mean_loss + norm):
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._give_up(images, targets, mean_loss, norm)
        if config.schedule == "cosine":
            for group in state.optimizer.param_groups:
                group["lr"] = cosine_learning_rate(config, state.iteration)
        lr = state.optimizer.param_groups[0]["lr"]
        self._stepper.step()
        state.iteration += 1
        self.interrupted = bool(interrupted)
        self.ended = bool(interrupted or overtime) or state.iteration >= config.iterations
        self._score, self._preview = None, []
        return _Step(mean_loss, lr, data_seconds)

    def _give_up(self, images: Tensor, targets: Tensor, loss: float, norm: float) -> None:
        """Save the state before a step that went wrong, and its crops, and raise."""
        state, fabric = self._state, self._fabric
        self._run.save_state(state.as_dict())
        items = _items(state.iteration, self.config, fabric)
        names = [self._crops.name(item) for item in items]
        path = self._run.save_crops(
            state.iteration, fabric.global_rank, images, targets, items, names
        )
        fabric.barrier()
        raise FloatingPointError(
            f"Iteration {state.iteration + 1} gave the loss {loss} and a gradient of norm {norm}. "
            f"Its crops (of {', '.join(names)}) are in {path}, the state before it is kept. Look "
            "at the crops; if these images are wrong, repair them and continue with `resume` "
            "(--resume). If they are not, start a new run with a lower `lr` or in float32 (from "
            "the last model of this one, if there is one)."
        )

    @property
    def due(self) -> bool:
        """Whether it is time for a validation."""
        return self._state.iteration % self.config.validation_interval == 0

    def validate(self) -> None:
        """Score the network; keep it if it is the best so far."""
        state = self._state
        for buffer in self._network.buffers():  # running means of each process: take the first's
            buffer.copy_(self._fabric.broadcast(buffer.cpu()))
        self._score, self._preview = self._validation.run()
        self._run.save_preview(state.iteration, self._preview, self._representation)
        if self._score.is_better_than(state.best):
            state.best = self._score
            info = {"iteration": state.iteration, **self._numbers(self._score)}
            self._run.save_model("best", self._trained(info))
        # Not when it just stops: continued, the run must be the same.
        if self.due and self.config.schedule == "plateau":
            state.scheduler.step(self._score.loss)

    def _numbers(self, score: Score | None) -> dict[str, float | None]:
        numbers = {} if score is None else score.as_dict()
        return {name: numbers.get(name) for name in measured(self._representation)}

    def write_log(self, done: _Step) -> Progress:
        """Log the iteration; tell how far the training is."""
        state = self._state
        state.seconds = time.perf_counter() - self._started
        left = self._log.write(
            {
                "iteration": state.iteration,
                "loss": done.loss,
                "lr": done.lr,
                **self._numbers(self._score),
                "seconds": state.seconds,
                "data_seconds": done.data_seconds,
            }
        )
        return Progress(state.iteration, done.loss, state.seconds, left, self._score, self._preview)

    def end_if(self, wanted: bool) -> None:
        """End the training if it is wanted in any of the processes."""
        self.ended |= _average(self._fabric, float(wanted))[0] > 0

    def save(self) -> None:
        """Save the newest model and the state."""
        self._run.save_model("last", self._trained({"iteration": self._state.iteration}))
        self._run.save_state(self._state.as_dict())

    def _trained(self, info: dict[str, Any]) -> TrainedModel:
        origin = {**self._origin, **info} if info else {}
        return TrainedModel(
            self._network,
            self._representation,
            self.config.normalization,
            origin,
            self._spacing,
        )

    def finish(self) -> Path:
        """Let a signal take its effect, or give the best model."""
        if self.interrupted:
            _logger.info(
                "Stopped after iteration %d. Continue with `resume` (--resume).",
                self._state.iteration,
            )
            signal.raise_signal(self._signals.received or signal.SIGTERM)
            raise KeyboardInterrupt  # where the signal has no effect: it is not a finished training
        self._fabric.barrier()  # the files are complete
        best = Path(self.config.output) / "best.safetensors"
        return best if best.exists() else best.with_name("last.safetensors")


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


def _common_spacing(samples: Sequence[Sample], config: TrainConfig) -> tuple[float, ...] | None:
    """Give the size of a voxel that all samples have; None if they differ or do not tell."""
    declared = {sample.spacing for sample in samples}
    if declared == {None} and config.spacing is not None:
        ndim = 2 if not isinstance(config.crop_size, Sequence) else len(config.crop_size)
        return per_axis("spacing", config.spacing, ndim)
    return declared.pop() if len(declared) == 1 else None


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


def training_crops(
    samples: Sequence[Sample],
    network: Network,
    representation: Representation,
    config: TrainConfig,
    length: int,
) -> RandomCrops:
    """Cut crops as a training with these settings does.

    Args:
        samples: Images with labels.
        network: What learns from them.
        representation: What it learns.
        config: Settings.
        length: Number of crops.
    """
    return RandomCrops(
        samples,
        config.crop_size,
        representation,
        config.seed,
        network.in_channels,
        length=length,
        axes=network.axes,
        normalization=config.normalization,
        spacing=config.spacing,
        rotations=config.rotations,
        free_rotation=config.free_rotation,
        augment=config.augment,
        zoom=config.zoom,
        min_objects=config.min_objects,
    )


def _loader(crops: RandomCrops, config: TrainConfig, start: int, fabric: Fabric) -> DataLoader:
    """Read the batches of this process from an iteration on."""
    workers = config.workers
    if workers is None:
        workers = min(8, max(1, (os.cpu_count() or 1) // 2 // fabric.world_size))
    return DataLoader(
        crops,
        batch_sampler=(_items(i, config, fabric) for i in range(start, config.iterations)),
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


def check_fit(
    network: Network,
    representation: Representation,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    config: TrainConfig,
) -> None:
    """Refuse what cannot be trained together; see `train`."""
    channels = representation.channels
    if network.out_channels != len(channels):
        raise ValueError(
            f"`network` must predict {len(channels)} maps ({', '.join(channels)}), "
            f"got {network.out_channels}. Build it with out_channels={len(channels)}."
        )
    if network.axes not in representation.axes:
        raise ValueError(
            f"Representation {representation.name!r} must fit the axes of the network, got "
            f"{network.axes}. It works in {', '.join(representation.axes)}."
        )
    sides = per_axis("crop_size", config.crop_size, len(network.axes))
    padded = network.padded(sides)
    if padded != sides:
        raise ValueError(
            f"`crop_size` must be divisible by {shown(network.stride)}, got "
            f"{config.crop_size}. Use {shown(padded)}."
        )
    if network.max_size is not None and any(
        side > most for side, most in zip(sides, network.max_size, strict=True)
    ):
        raise ValueError(
            f"`crop_size` must be at most {shown(network.max_size)} for this network, "
            f"got {config.crop_size}."
        )
    for name, samples in (("train_samples", train_samples), ("val_samples", val_samples)):
        if not samples:
            raise ValueError(f"`{name}` must hold at least one sample, got none.")
