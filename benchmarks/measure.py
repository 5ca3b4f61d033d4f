"""What all benchmarks share: fair timing, FLOPs, the limit of the machine, memory, CSV files.

Only ratios of times from one run mean anything: rivals take turns, so that whatever else the
machine does meets all of them. Nothing here knows a network.
"""

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from vimunet.io.atomic import replacing
from vimunet.models.scan import active_backend

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Precision = Literal["float32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}

_SHORTEST = 0.02  # seconds: what takes less is called several times in a row
_LONGEST = 60.0  # seconds: what has taken more in all has no further turn
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # decide how fast bfloat16 is


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    minimum: float
    median: float
    calls: int


def compare(
    rivals: Mapping[str, Callable[[], object]], repeats: int, quiet: bool = False
) -> dict[str, Timing]:
    """Time functions that do the same work, in turns.

    Args:
        rivals: Functions without arguments. Each is called once before, untimed.
        repeats: Number of rounds. In a round each has its turn: one call, or as many as fit into
            0.02 seconds; none for who has used up a minute.
        quiet: Do not print the table.

    Returns:
        Timing of each, over all its calls.
    """
    calls = {}
    for name, call in rivals.items():
        calls[name] = max(1, int(_SHORTEST / _seconds(call)))
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, call in rivals.items():
            if sum(times[name]) < _LONGEST:
                times[name] += [_seconds(call) for _ in range(calls[name])]
    timings = {
        name: Timing(min(seconds), statistics.median(seconds), len(seconds))
        for name, seconds in times.items()
    }
    if not quiet:
        best = min(timing.minimum for timing in timings.values())
        for name, timing in timings.items():
            ratio = timing.minimum / best
            print(f"  {name:<36}{timing.minimum:>12.5f} s{ratio:>9.2f} x", flush=True)
    return timings


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Work:
    """GFLOP of a network on one image, or GFLOP/s of a machine, by kind of operation."""

    convolution: float
    product: float

    def best(self, other: "Work") -> "Work":
        """Return the higher of both rates."""
        return Work(max(self.convolution, other.convolution), max(self.product, other.product))

    def seconds_at(self, rates: "Work") -> float:
        """Return the time this work takes at these rates: the limit of the machine."""
        return self.convolution / rates.convolution + self.product / rates.product


def count_flops(network: nn.Module, image: Tensor) -> Work:
    """Count the GFLOP of convolutions and matrix products; a multiply-add is two FLOP.

    Counted is the differentiable path of the network, of plain torch operations; the path taken in
    prediction may compute the same in other ways. Our own compiled operations (scan, convolution of
    each channel by itself, norm) are neither of the two kinds.

    Raises:
        RuntimeError: If the network uses a convolution or product that cannot be counted.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    watcher = _Watcher({*flop_registry, attention})
    # What is saved for a backward pass, which never comes, is thrown away.
    forget = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0))
    with torch.enable_grad(), forget, counter, watcher:
        network(image)
    work = {"convolution": 0.0, "product": 0.0}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        work["convolution" if "convolution" in str(operation) else "product"] += flops / 1e9
    return Work(**work)


def _attention_flops(
    query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_flop_count(query, key, value)


class _Watcher(TorchDispatchMode):
    """Raises if an operation is a convolution or a product by its name, but not counted."""

    def __init__(self, counted: set[Any]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = str(func)
        costly = any(word in name for word in ("conv", "linear", "mm", "attention"))
        known = func.overloadpacket in self.counted or func.namespace == "vimunet"
        if costly and not known and "upsample" not in name:
            raise RuntimeError(
                f"`count_flops` must know all convolutions and products, got {name}."
            )
        return func(*args, **(kwargs or {}))


def machine_rates(precision: Precision, repeats: int, shrink: int = 1) -> Work:
    """Measure the GFLOP/s of large channels-last convolutions and matrix products, the best ones.

    Args:
        precision: A key of `PRECISIONS`.
        repeats: Rounds over all of them.
        shrink: Divide the sides of maps and matrices by this, for a quick try.
    """
    dtype = PRECISIONS[precision]
    calls: dict[str, Callable[[], object]] = {}
    gflop: dict[str, float] = {}
    for channels, size in ((64, 512), (128, 256), (256, 128), (512, 64)):
        side = size // shrink
        maps, weight = torch.randn(1, channels, side, side), torch.randn(channels, channels, 3, 3)
        maps, weight = (
            tensor.to(dtype, memory_format=torch.channels_last) for tensor in (maps, weight)
        )
        name = f"convolution {channels} x {side} x {side}"
        calls[name] = partial(nn.functional.conv2d, maps, weight, padding=1)
        gflop[name] = 2e-9 * 9 * channels**2 * side**2
    for shape in ((2048, 2048, 2048), (4096, 768, 3072)):
        rows, inner, columns = (length // shrink for length in shape)
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        name = f"product {rows} x {inner} x {columns}"
        calls[name] = partial(torch.matmul, left, right)
        gflop[name] = 2e-9 * rows * inner * columns
    with torch.inference_mode():
        timings = compare(calls, repeats, quiet=True)
    rates = {name: gflop[name] / timing.minimum for name, timing in timings.items()}
    for name, rate in rates.items():
        print(f"  {precision} {name:<30}{rate:>8.1f} GFLOP/s", flush=True)
    return Work(
        max(rate for name, rate in rates.items() if name.startswith("convolution")),
        max(rate for name, rate in rates.items() if name.startswith("product")),
    )


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Linux hands the peak that `getrusage` tells down from the parent process; its own peak is in
    /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    peak_usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_usage if sys.platform == "darwin" else peak_usage * 1024


def run_fresh(function: str, **arguments: Any) -> dict[str, Any]:
    """Call a function in a new process, so that its memory and caches are its own.

    Args:
        function: "module:name" of a function that returns a dict of JSON values.
        **arguments: Its arguments, JSON values.

    Raises:
        RuntimeError: If the process fails. The message has the end of what it wrote.
    """
    module, name = function.split(":")
    code = (
        f"import json, sys; from {module} import {name}; "
        f"print(json.dumps({name}(**json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(
            f"{function} with {arguments} ended with code {done.returncode}: {done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Make the command line that all benchmarks share.

    Args:
        description: Docstring of the script.
        repeats: Default number of rounds.
    """
    flags = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    flags.add_argument("--threads", type=int, default=_cores(), help="default: all cores")
    flags.add_argument("--repeats", type=int, default=repeats, help=f"rounds, default {repeats}")
    flags.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    flags.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV files")
    return flags


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file; each row also tells the machine, the threads and the code.

    Args:
        path: File to write.
        rows: All with the same columns; one called `threads` wins over the number of now.
    """
    rows = [{**machine(), **row} for row in rows]
    names = [*(name for name in rows[0] if name not in machine()), *machine()]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{path}: {len(rows)} rows")


def machine() -> dict[str, object]:
    """Describe what the numbers belong to."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "torch": torch.__version__,
        "scan_backend": active_backend("cpu")[0],
        "commit": _commit(),
    }


def _cpu() -> str:
    """Name the CPU and its instruction sets that matter here."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text().splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    features = [name for name in _FEATURES if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(features)})"


def _commit() -> str:
    """Name the commit, with "-dirty" if anything but what benchmarks write was changed since."""
    written = [f":(exclude){folder}" for folder in ("benchmarks/results", "docs")]
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("diff", "--name-only", "HEAD", "--", ".", *written)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
