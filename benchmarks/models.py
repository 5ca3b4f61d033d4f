"""Time every model on one image of 256 x 256 pixels, and those that scan also with a loop as scan.

    python -m benchmarks.models

The loop over tokens is what the published codes are left with on a CPU. It is timed on one thread,
beside our scan on one thread; it would gain nothing from more.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks import measure
from benchmarks.networks import PLANNED, SKIPPED, by_loop, predict
from vimunet.models import MODELS, build_model
from vimunet.models.compiled import memory_kept

LOOP = {"vim_n", "vim_s", "vim_t", "vmunet", "umamba_bot", "umamba_enc"}


def main() -> None:
    flags = measure.parser(__doc__, repeats=3)
    flags.add_argument("--networks", nargs="+", default=sorted(set(MODELS) - SKIPPED))
    options = flags.parse_args()
    size = 64 if options.quick else 256
    image = torch.randn(1, 1, size, size)
    rows = []
    for name in options.networks:
        print(f"{name}, {size} x {size}")
        torch.manual_seed(0)
        planned = {"image_size": size} if name in PLANNED else {}
        timings = time_model(name, build_model(name, **planned).eval(), image, options)
        rows.append({"model": name, "size": size, **timings})
    torch.set_num_threads(options.threads)
    measure.write_rows(options.output / "models.csv", rows)


def time_model(
    name: str, network: nn.Module, image: torch.Tensor, options: Namespace
) -> dict[str, object]:
    """Give the shortest seconds of each way to run a network; "" where there is none."""
    calls: dict[str, Callable[[], torch.Tensor]] = {
        precision: partial(predict, network, image, dtype)
        for precision, dtype in measure.PRECISIONS.items()
    }
    one_thread: dict[str, Callable[[], torch.Tensor]] = {"one_thread": calls["float32"]}
    if name in LOOP:
        one_thread["one_thread_loop"] = partial(by_loop, calls["float32"])
    with memory_kept():
        torch.set_num_threads(options.threads)
        timings = measure.compare(calls, options.repeats)
        torch.set_num_threads(1)
        timings |= measure.compare(one_thread, options.repeats)
    names = (*calls, "one_thread", "one_thread_loop")
    return {name: timings[name].minimum if name in timings else "" for name in names}


if __name__ == "__main__":
    main()
