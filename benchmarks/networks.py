"""Time whole networks on one image against torch-em's and against the limit of the machine.

    python -m benchmarks.networks

Everything runs in one process with one number of threads:

- networks.csv: every network at several sizes, in float32 and in bfloat16 (autocast), beside
  torch-em's UNet2d in both memory formats and our UNet with its weights, and our ViM-UNet decoder
  beside torch-em's UNETR with equal weights. The limit is the time that the convolutions and
  matrix products of a network would take at the highest rates measured in the same run.
- arrangement.csv: ViM-UNet tiny at the image's own size; the published network, which places the
  image on a square of 1024 pixels; and the same with a loop over tokens as its scan, which is all
  that the published code has without its CUDA kernel.
- limits.csv: the rates.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import measure
from benchmarks.peers import torch_em_unet, torch_em_unetr, version
from vimunet.bridges.torch_em import read_checkpoint
from vimunet.models import MODELS, build_model, mamba, vmunet
from vimunet.models.compiled import memory_kept
from vimunet.models.scan import selective_scan_reference

KEPT = ", memory kept"
SKIPPED = {"unetr_h", "unetr_l", "vim_b"}  # the same code as the smaller ones, only wider
if find_spec("monai") is None:
    SKIPPED.add("swin_unetr")
PLANNED = {"resunet", "umamba_bot", "umamba_enc"}  # for the size of the image, as nnU-Net does
EMBED_DIM = 192  # of ViM-UNet tiny, whose decoder is compared


def main() -> None:
    flags = measure.parser(__doc__, repeats=3)
    flags.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    flags.add_argument("--networks", nargs="+", default=sorted(set(MODELS) - SKIPPED))
    options = flags.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes, shrink = ([64], 8) if options.quick else (options.sizes, 1)

    with memory_kept():
        rates = measure_rates(options.repeats, shrink)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += time_networks(options.networks, size, options.repeats)
    with memory_kept():
        arrangements = time_arrangements(512 // shrink, 1024 // shrink, options.repeats)
        rates = {
            precision: rates[precision].best(again)
            for precision, again in measure_rates(options.repeats, shrink).items()
        }
    measure.write_rows(options.output / "networks.csv", add_limits(rows, rates))
    measure.write_rows(options.output / "arrangement.csv", arrangements)
    measure.write_rows(
        options.output / "limits.csv",
        [
            {
                "precision": precision,
                "convolution_gflop_per_second": rate.convolution,
                "product_gflop_per_second": rate.product,
            }
            for precision, rate in rates.items()
        ],
    )


def measure_rates(repeats: int, shrink: int) -> dict[measure.Precision, measure.Work]:
    """Measure the limits of the machine in each precision, in GFLOP/s."""
    return {name: measure.machine_rates(name, repeats, shrink) for name in measure.PRECISIONS}


def add_limits(
    rows: list[dict[str, Any]], rates: Mapping[measure.Precision, measure.Work]
) -> list[dict[str, Any]]:
    """Add to each row the time at the limit of the machine, and how much of it is reached."""
    limited = []
    for row in rows:
        work = measure.Work(row["convolution_gflop"], row["product_gflop"])
        limit = work.seconds_at(rates[row["precision"]])
        limited.append({**row, "limit_seconds": limit, "fraction_of_limit": limit / row["seconds"]})
    return limited


def time_networks(names: list[str], size: int, repeats: int) -> list[dict[str, Any]]:
    """Time the networks on one image of `size` x `size` pixels; return the rows of the table."""
    networks, differences = build_networks(names, size)
    image = torch.randn(1, 1, size, size)
    works = {name: measure.count_flops(network, image) for name, network in networks.items()}
    last = image.to(memory_format=torch.channels_last)
    rows = []
    for precision, dtype in measure.PRECISIONS.items():
        print(f"networks, {size} x {size}, {precision}")
        calls = {
            name: partial(predict, network, last if "channels-last" in name else image, dtype)
            for name, network in networks.items()
        }
        peers = {name: call for name, call in calls.items() if name.startswith("torch-em")}
        timings = measure.compare(peers, repeats)
        calls = {name + KEPT * (name in peers): call for name, call in calls.items()}
        with memory_kept():  # as `predict` does
            timings |= measure.compare(calls, repeats)
        for name, timing in timings.items():
            work = works[name.removesuffix(KEPT)]
            rows.append(
                {
                    "network": name,
                    "size": size,
                    "precision": precision,
                    "seconds": timing.minimum,
                    "median_seconds": timing.median,
                    "calls": timing.calls,
                    "convolution_gflop": work.convolution,
                    "product_gflop": work.product,
                    "largest_difference": differences.get(name, ""),
                    "torch_em": version("torch-em"),
                }
            )
    return rows


def build_networks(names: list[str], size: int) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Build our networks and torch-em's, and compare those with equal weights.

    Returns:
        The networks by name, in eval mode; and for ours with torch-em's weights, the largest
        difference to torch-em's logits in float32.
    """
    networks: dict[str, nn.Module] = {
        name: build_model(name, **({"image_size": size} if name in PLANNED else {})).eval()
        for name in names
    }
    if "vim_t" in networks:
        networks["vim_t, skip connections"] = build_model("vim_t", skip_connections=True).eval()
    peer = torch_em_unet()
    channels_last = torch_em_unet()
    channels_last.load_state_dict(peer.state_dict())
    networks["torch-em UNet2d"] = peer
    networks["torch-em UNet2d, channels-last"] = channels_last.to(
        memory_format=torch.channels_last  # type: ignore[call-overload]
    )
    networks["unet, torch-em's weights"] = _with_weights_of(peer)
    theirs, ours = decoders(size)
    networks["torch-em UNETR decoder"] = theirs
    networks["vim_t decoder, torch-em's weights"] = ours

    image = torch.randn(1, 1, size, size)
    pairs = {
        "unet, torch-em's weights": "torch-em UNet2d",
        "vim_t decoder, torch-em's weights": "torch-em UNETR decoder",
    }
    with torch.inference_mode():
        differences = {
            ours: (networks[ours](image) - networks[theirs](image)).abs().max().item()
            for ours, theirs in pairs.items()
        }
    return networks, differences


def _with_weights_of(peer: nn.Module) -> nn.Module:
    """Read torch-em's network from a file as it saves it, as `vimunet convert` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.pt"
        torch.save({"model_state": peer.state_dict()}, path)
        return read_checkpoint(path)


def decoders(size: int) -> tuple[nn.Module, nn.Module]:
    """Build torch-em's UNETR decoder and ours with equal weights, both behind given features."""
    encoder = GivenFeatures(size)
    peer = torch_em_unetr(encoder)
    ours: Any = build_model("vim_t")
    ours.encoder = encoder
    ours.load_state_dict(peer.state_dict())
    return DecoderOf(peer, encoder), ours.eval()


class GivenFeatures(nn.Module):
    """Stands for an encoder: the same random features (1, 192, y / 16, x / 16) for every image."""

    in_chans = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.img_size, self.embed_dim = size, EMBED_DIM
        self.features = torch.randn(1, EMBED_DIM, size // 16, size // 16)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return one feature map, as our encoders do."""
        return [self.features]


class DecoderOf(nn.Module):
    """The decoder of torch-em's UNETR alone."""

    def __init__(self, unetr: Any, encoder: GivenFeatures) -> None:
        super().__init__()
        self.unetr, self.features = unetr, encoder.features

    def forward(self, image: Tensor) -> Tensor:
        """Return (1, m, y, x) logits."""
        shape = tuple(image.shape[2:])
        return self.unetr.decode((self.features, None, image), shape, shape)


@torch.inference_mode()
def predict(network: nn.Module, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the (b, m, y, x) logits, computed in `dtype` where autocast does."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return network(image)


def time_arrangements(size: int, canvas: int, repeats: int) -> list[dict[str, Any]]:
    """Time ViM-UNet tiny in its own and in the published arrangement on one image, in float32.

    Args:
        size: Side of the image in pixels.
        canvas: Side of the square on which the published network places it.
        repeats: Rounds.
    """
    image = torch.randn(1, 1, size, size)
    default = build_model("vim_t").eval()
    published = build_model("vim_t", variant="paper", image_size=canvas).eval()
    calls: dict[str, Callable[[], Tensor]] = {
        "default": partial(predict, default, image, torch.float32),
        "published": partial(predict, published, image, torch.float32),
        "published, loop over tokens": partial(
            by_loop, partial(predict, published, image, torch.float32)
        ),
    }
    difference = (calls["published, loop over tokens"]() - calls["published"]()).abs().max().item()
    print(f"ViM-UNet tiny, {size} x {size}; published on {canvas} x {canvas}")
    return [
        {
            "arrangement": name,
            "size": size,
            "canvas": size if name == "default" else canvas,
            "seconds": timing.minimum,
            "median_seconds": timing.median,
            "calls": timing.calls,
            "largest_difference": difference if "loop" in name else "",
        }
        for name, timing in measure.compare(calls, repeats).items()
    ]


def by_loop(call: Callable[[], Tensor]) -> Tensor:
    """Call with the loop over tokens as the scan of all networks."""
    with (
        mock.patch.object(mamba, "selective_scan", loop_scan),
        mock.patch.object(vmunet, "selective_scan", loop_scan),
    ):
        return call()


def loop_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    orders: tuple[str, ...] = ("forward",),
    grid: tuple[int, int] | None = None,
    delta_bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Do what `selective_scan` does by the loop over tokens that defines it, order after order."""
    if delta_bias is not None:
        delta = functional.softplus(delta + delta_bias[:, None, None])
    total = torch.zeros_like(u[0])
    for i, order in enumerate(orders):
        steps = _positions(order, u.shape[2], grid)
        back = steps.argsort()
        y = selective_scan_reference(
            u[i][:, steps], delta[i][:, steps], A[i], B[i][:, steps], C[i][:, steps], D[i]
        )
        total = total + y[:, back]
    return total if gate is None else total * functional.silu(gate)


def _positions(order: str, length: int, grid: tuple[int, int] | None) -> Tensor:
    """Return the row-major tokens in the order in which they are visited."""
    positions = torch.arange(length)
    if order.startswith("columns"):
        assert grid is not None
        positions = positions.reshape(grid).T.flatten()
    return positions.flip(0) if order.endswith("reverse") else positions


if __name__ == "__main__":
    main()
