"""Time the selective scan against its definition and two vectorised forms in plain torch.

    python -m benchmarks.scan

The definition is the loop over tokens; "chunked torch" is what runs here without a compiler;
"mambapy" is a parallel scan of log2(l) steps. The base case is one direction of one layer of
ViM-UNet tiny on a 512 x 512 image with a class token: 1025 tokens, 384 channels, 16 states.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import measure
from benchmarks.peers import mambapy_scan
from vimunet.models import scan
from vimunet.models.compiled import memory_kept
from vimunet.models.scan import selective_scan, selective_scan_reference

STATES = 16
BASE = (1025, 384)
CASES = (BASE, (256, 384), (4097, 384), (1025, 192), (1025, 768))
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def main() -> None:
    flags = measure.parser(__doc__, repeats=10)
    flags.add_argument("--all-threads", type=int, nargs="+", help="default: 1 and all cores")
    options = flags.parse_args()
    cases = ((33, 16),) if options.quick else CASES
    rows = []
    for threads in options.all_threads or sorted({1, options.threads}):
        torch.set_num_threads(threads)
        for length, width in cases:
            inputs = make_inputs(length, width)
            truth = selective_scan_reference(*inputs)
            for direction, make_call in (("forward", forward), ("forward + backward", both)):
                print(f"{direction}, {length} tokens, {width} channels, {threads} threads")
                calls = {name: make_call(form, inputs) for name, form in FORMS.items()}
                with memory_kept():  # as `predict` and `train` do
                    timings = measure.compare(calls, options.repeats)
                for name, timing in timings.items():
                    difference = (FORMS[name](*inputs) - truth).abs().max().item()
                    rows.append(
                        {
                            "length": length,
                            "width": width,
                            "states": STATES,
                            "pass": direction,
                            "form": name,
                            "seconds": timing.minimum,
                            "median_seconds": timing.median,
                            "calls": timing.calls,
                            "largest_difference": difference,
                            "threads": threads,
                        }
                    )
    measure.write_rows(options.output / "scan.csv", rows)


def make_inputs(length: int, width: int) -> Inputs:
    """Draw inputs as a fresh network has them: steps about 0.01, decay rates -1 ... -16."""
    generator = torch.Generator().manual_seed(0)
    u, step = torch.randn(2, 1, length, width, generator=generator)
    B, C = torch.randn(2, 1, length, STATES, generator=generator)
    A = -torch.arange(1.0, STATES + 1).repeat(width, 1)
    return u, functional.softplus(step - 4.6), A, B, C, torch.ones(width)


def compiled(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Run one forward scan with the backend of the device."""
    one = [tensor.unsqueeze(0) for tensor in (u, delta, A, B, C, D)]
    return selective_scan(*one, orders=("forward",))


def chunked(*inputs: Tensor) -> Tensor:
    """Run the scan as without compiled kernels."""
    with without_kernels():
        return compiled(*inputs)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Hide the compiled kernels from the choice of the backend."""
    with mock.patch.object(scan, "active_backend", lambda device: ("torch", "")):
        yield


FORMS: dict[str, Callable[..., Tensor]] = {
    "definition": selective_scan_reference,
    "mambapy": mambapy_scan,
    "chunked torch": chunked,
    "vimunet": compiled,
}


def forward(form: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Return a call of the scan alone."""
    return partial(_forward, form, inputs)


@torch.inference_mode()
def _forward(form: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    return form(*inputs)


def both(form: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """Return a call of the scan and of its gradient by all six inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    gradient = torch.ones_like(inputs[0])
    return lambda: torch.autograd.grad(form(*leaves), leaves, gradient)


if __name__ == "__main__":
    main()
