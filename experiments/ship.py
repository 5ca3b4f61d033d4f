"""Put a trained model into the package, in half precision.

    python experiments/ship.py --model scores/nuclei/tuned.safetensors --name nuclei --purpose TEXT

The thresholds are those of the file, so ship the tuned one that `evaluate.py` writes. The card,
`vimunet/weights/NAME.md`, is written by hand.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from vimunet.segmentation.model_file import WEIGHTS, load_model, save_model

_LARGEST = 8_000_000


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--model", type=Path, required=True, help="model file")
    flags.add_argument("--name", required=True, help="what the user types")
    flags.add_argument("--purpose", required=True, help="what it is for, in a line")
    options = flags.parse_args()
    print(ship(options.model, WEIGHTS / f"{options.name}.safetensors", options.purpose))


def ship(model_file: Path, path: Path, purpose: str) -> Path:
    """Write a model in half precision.

    Raises:
        ValueError: If a weight is too large for half precision, or the file for the package.
    """
    model = load_model(model_file)
    network = model.network.half()
    broken = [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"Weights must fit into half precision, got too large: {broken}.")
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > _LARGEST:
        raise ValueError(
            f"A shipped model must have at most {_LARGEST} bytes, got {size}. Use `vim_n`."
        )
    save_model(path, replace(model, network=network, info={**model.info, "purpose": purpose}))
    return path


if __name__ == "__main__":
    main()
