"""Compile the kernels of `scan_triton.py` for a GPU that need not be there; no test by itself.

`python tests/triton_compile.py cuda` makes the launches of one forward and backward pass, writes
them down instead of running them, and compiles each for the given kind of GPU. The interpreter
lets pass what the compiler refuses (types that change in a loop, constants assigned twice), and
only compiling shows whether Triton's version knows all that the kernels use. Prints the kernels.
"""

import sys
from unittest.mock import MagicMock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vimunet.models import scan_triton, scan_triton_kernels

TARGETS = {"cuda": GPUTarget("cuda", 80, 32), "rocm": GPUTarget("hip", "gfx942", 64)}
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


class Recorder:
    """Stands for the kernels: `recorder.name[grid](...)` only writes the arguments down."""

    def __init__(self) -> None:
        self.launches = {}

    def __getattr__(self, name):
        launch = MagicMock()
        launch.__getitem__.return_value = lambda *args, **options: self.launches.setdefault(
            name, (args, options)
        )
        return launch


def record() -> dict:
    """Return name -> (arguments, options) of the launches with bfloat16 input, bias and gate."""
    recorder = Recorder()
    scan_triton._kernels = lambda: recorder
    scan_triton.triton_problem = lambda: None
    k, b, l, d, n = 2, 3, 40, 96, 16  # noqa: E741
    signal, gate = torch.zeros(b, l, 2 * d, dtype=torch.bfloat16, requires_grad=True).chunk(2, -1)
    B, C = torch.zeros(k, b, l, 2 * n, dtype=torch.bfloat16).chunk(2, -1)
    y = scan_triton.triton_selective_scan(
        signal.expand(k, b, l, d),
        torch.zeros(k, b, l, d),
        torch.zeros(k, d, n),
        B,
        C,
        torch.zeros(k, d),
        orders=("forward", "columns-reverse"),
        grid=(5, 8),
        delta_bias=torch.zeros(k, d),
        gate=gate,
    )
    y.sum().backward()
    return recorder.launches


def compile_launch(name: str, args: tuple, options: dict, target: GPUTarget) -> None:
    """Compile a kernel as a launch with these arguments would."""
    kernel = getattr(scan_triton_kernels, name)
    warps = {"num_warps": options["num_warps"]} if "num_warps" in options else {}
    options = {key: value for key, value in options.items() if key != "num_warps"}
    parameters = {parameter.name: parameter for parameter in kernel.params}
    values = dict(zip(parameters, args, strict=False)) | options
    assert len(args) + len(options) == len(values) == len(parameters), name
    signature, constants, aligned = {}, {}, {}
    for i, (key, parameter) in enumerate(parameters.items()):
        value = values[key]
        specialize = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[key] = NAMES[value.dtype]
        elif parameter.is_constexpr or value is None or (value == 1 and specialize):
            signature[key], constants[key] = "constexpr", value
            continue
        else:
            signature[key] = "i32"
        if isinstance(value, torch.Tensor) or (value % 16 == 0 and specialize):
            aligned[(i,)] = [["tt.divisibility", 16]]
    triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=warps)


if __name__ == "__main__":
    for name, (args, options) in record().items():
        compile_launch(name, args, options, TARGETS[sys.argv[1]])
        print(name)
