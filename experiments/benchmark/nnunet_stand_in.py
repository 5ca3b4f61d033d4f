"""Write the stand-ins for LIVECell and CREMI as data sets of nnU-Net, split as for our networks.

The images are those of `livecell_sample` and `cremi_sample` in `vimunet.datasets.splits`: number
501 is phase contrast with three classes, 502 electron microscopy with the boundary alone.

    python experiments/benchmark/nnunet_stand_in.py FOLDER --output runs/nnunet
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vimunet.bridges.nnunet import write_dataset
from vimunet.cli.arguments import add_protocol


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("data", type=Path, help="folder with the data sets")
    flags.add_argument("--output", type=Path, required=True, help="gets nnUNet_raw and more")
    add_protocol(flags, "how objects become classes")
    options = flags.parse_args()
    root = options.data.resolve()
    written = {
        "output": options.output / "nnUNet_raw",
        "preprocessed": options.output / "nnUNet_preprocessed",
        "protocol": options.protocol,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folders = Path(scratch)
        usiigaci, livecell = root / "usiigaci", root / "livecell_sample"
        extra = sorted((livecell / "labels" / "val").glob("*.tif"))
        pictures = livecell / "images" / "livecell_train_val_images"
        write_dataset(
            collect(
                folders / "images",
                [*(usiigaci / "images" / "train").glob("*"), *(pictures / f.name for f in extra)],
            ),
            collect(folders / "labels", [*(usiigaci / "labels" / "train").glob("*"), *extra]),
            dataset_id=501,
            name="Phase",
            val_images=usiigaci / "images" / "val",
            val_labels=usiigaci / "labels" / "val",
            test_images=livecell / "images" / "livecell_test_images",
            **written,
        )
        sections = {"train": range(13), "val": (14, 15)}
        em = {
            f"{part}_{kind}": collect(
                folders / f"em_{part}_{kind}",
                (root / "vnc_sstem" / folder / f"{number:02d}.tif" for number in numbers),
            )
            for part, numbers in sections.items()
            for kind, folder in (("images", "images"), ("labels", "labels/instances"))
        }
        write_dataset(
            em["train_images"],
            em["train_labels"],
            dataset_id=502,
            name="Neurites",
            val_images=em["val_images"],
            val_labels=em["val_labels"],
            test_images=root / "isbi2012" / "images",
            representation="boundary",
            **written,
        )


def collect(folder: Path, files: Iterable[Path]) -> Path:
    """Link files from several places in one folder."""
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


if __name__ == "__main__":
    main()
