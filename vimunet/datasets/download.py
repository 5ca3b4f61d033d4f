"""Fetch the data sets of the paper, checked and without starting again what is already there.

A file gets its name only when it is complete and its hash is right; until then it is NAME.part,
which the next call continues. `SHA256SUMS` in the folder lists what was checked, in the format of
`sha256sum -c`.
"""

import errno
import logging
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests

from vimunet.io.atomic import replacing

logger = logging.getLogger(__name__)

_SUMS = "SHA256SUMS"
_TRIES = 3
_SECONDS_BETWEEN_TRIES = 1.0
_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        url: Where it lies, below the base URL of the data set.
        path: Where it goes, below the folder of the data set, with "/".
        sha256: Its known hash. None: nobody has published one. Then the size that the server
            states is checked, and the hash of the first download is kept in `SHA256SUMS`.
        unpacks_to: For a zip archive, the folder it holds. The archive is removed afterwards.
        unpacked_bytes: Space that this folder needs.
    """

    url: str
    path: str
    sha256: str | None
    unpacks_to: str | None = None
    unpacked_bytes: int = 0


@dataclass(frozen=True)
class RemoteData:
    """A data set that can be downloaded, with what its users must know."""

    title: str
    base_url: str
    files: tuple[RemoteFile, ...]
    licence: str
    citation: str

    @property
    def notice(self) -> str:
        """Title, licence and citation, to be shown before a download."""
        return f"{self.title}\nLicence: {self.licence}\nCite: {self.citation}"


_LIVECELL = "annotations/LIVECell/livecell_coco_"

DATASETS = {
    # No hash of LIVECell's files has been published. Sources of the addresses and sizes:
    # https://github.com/sartorius-research/LIVECell (README, 1.3 GB of images unzipped).
    "livecell": RemoteData(
        title="LIVECell, phase-contrast images of eight cell lines with annotated cells",
        base_url="https://livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021",
        files=(
            *(
                RemoteFile(
                    f"{_LIVECELL}{split}.json", f"annotations/livecell_coco_{split}.json", None
                )
                for split in ("train", "val", "test")
            ),
            RemoteFile("images.zip", "images.zip", None, "images", 1_300_000_000),
        ),
        licence="CC BY-NC 4.0 (no commercial use), https://creativecommons.org/licenses/by-nc/4.0/",
        citation=(
            "Edlund et al. 2021, LIVECell - A large-scale dataset for label-free live cell "
            "segmentation. Nature Methods 18:1038, https://doi.org/10.1038/s41592-021-01249-6"
        ),
    ),
    # Hashes as in torch-em, torch_em/data/datasets/electron_microscopy/cremi.py.
    "cremi": RemoteData(
        title="CREMI, neurites in electron microscopy of the adult fly brain",
        base_url="https://cremi.org/static/data",
        files=tuple(
            RemoteFile(f"sample_{sample}_20160501.hdf", f"sample_{sample}_20160501.hdf", sha256)
            for sample, sha256 in (
                ("A", "4c563d1b78acb2bcfb3ea958b6fe1533422f7f4a19f3e05b600bfa11430b510d"),
                ("B", "887e85521e00deead18c94a21ad71f278d88a5214c7edeed943130a1f4bb48b8"),
                ("C", "2874496f224d222ebc29d0e4753e8c458093e1d37bc53acd1b69b19ed1ae7052"),
            )
        ),
        licence="not stated with the files; published for the challenge, see https://cremi.org",
        citation=(
            "Funke, Saalfeld, Bock, Turaga, Perlman 2016, MICCAI challenge on circuit "
            "reconstruction from electron microscopy images, https://cremi.org"
        ),
    ),
}


def download(
    name: str, directory: str | Path, *, base_url: str | None = None, progress: bool = True
) -> Path:
    """Download a data set, or only what is missing or damaged of it.

    Everything that is there is verified first, so a complete folder needs no network. Licence,
    citation and the space needed are logged; `DATASETS[name].notice` has the first two.

    Args:
        name: "livecell" or "cremi".
        directory: Folder for the files; made if it does not exist.
        base_url: Another place with the same files, e.g. a mirror.
        progress: Show a progress bar for each file.

    Returns:
        The folder, ready for `livecell_samples` or `cremi_samples`.

    Raises:
        ValueError: If the name is unknown, a downloaded file has not its known hash or size, or
            an archive is damaged or wants to write outside of its folder.
        FileExistsError: If files are in the way that no earlier call has checked.
        OSError: If the folder cannot be written to, the disk is too small or the server fails.
            Calling again continues where the download stopped.
    """
    if name not in DATASETS:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(sorted(DATASETS))}.")
    data, directory = DATASETS[name], Path(directory)
    logger.info("%s", data.notice)
    _prepare(directory)
    sums = _read_sums(directory)
    missing = [file for file in data.files if not _is_there(file, directory, sums)]
    if not missing:
        logger.info("All files are in %s and have the right hash.", directory)
        return directory

    base_url = (base_url or data.base_url).rstrip("/")
    remote = {file: _ask(f"{base_url}/{file.url}") for file in missing}
    _check_space(directory, remote)
    for file, (size, resumes) in remote.items():
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        url, sha256 = f"{base_url}/{file.url}", file.sha256 or sums.get(file.path)
        if not _keep(target, sha256, size):
            part = _fetch(url, target, size, resumes, progress)
            _verify(part, url, sha256)
            part.replace(target)
        sums[file.path] = pooch.file_hash(str(target))
        _write_sums(directory, sums)
        if file.unpacks_to is not None:
            _unpack(target, directory, file.unpacks_to, sums)
    return directory


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"Cannot write to {directory} ({error.strerror}). Choose another folder."
        ) from error


def _is_there(file: RemoteFile, directory: Path, sums: dict[str, str]) -> bool:
    """Check whether a file, or what was unpacked from it, is there with the right hashes."""
    if file.unpacks_to is None:
        expected = {file.path: file.sha256 or sums.get(file.path)}
    else:
        expected = {path: sums[path] for path in sums if path.startswith(f"{file.unpacks_to}/")}
        folder = directory / file.unpacks_to
        if not expected and folder.exists():
            raise FileExistsError(
                f"{folder} is already there and no earlier download has checked it. "
                "Use it as it is, or move it away to download it."
            )
    wrong = [path for path, sha256 in expected.items() if not _matches(directory / path, sha256)]
    return bool(expected) and not wrong


def _matches(file: Path, sha256: str | None) -> bool:
    return sha256 is not None and file.is_file() and pooch.file_hash(str(file)) == sha256


def _keep(target: Path, sha256: str | None, size: int | None) -> bool:
    """Say whether the file that is there can stay; move a damaged one out of the way."""
    if not target.is_file() or _matches(target, sha256):
        return target.is_file()
    if sha256 is None:
        if size == target.stat().st_size:
            return True
        raise FileExistsError(
            f"{target} must have {size} bytes as on the server, got {target.stat().st_size}. "
            "Move it away to download it."
        )
    aside = target.with_name(f"{target.name}.damaged")
    target.replace(aside)
    logger.warning("%s has not the right SHA-256; it is now %s.", target, aside)
    return False


def _ask(url: str) -> tuple[int | None, bool]:
    """Ask the server for the size of a file in bytes, and whether it can send a part of it."""
    try:
        answer = requests.head(
            url, timeout=_TIMEOUT, allow_redirects=True, headers={"Accept-Encoding": "identity"}
        )
        answer.raise_for_status()
    except requests.RequestException as error:
        raise OSError(f"Cannot get {url} ({error}). Check the network, then try again.") from error
    size = answer.headers.get("Content-Length")
    resumes = answer.headers.get("Accept-Ranges") == "bytes" and size is not None
    return (None if size is None else int(size)), resumes


def _check_space(directory: Path, remote: dict[RemoteFile, tuple[int | None, bool]]) -> None:
    needed = 0
    for file, (size, _) in remote.items():
        part = _part(directory / file.path)
        already = part.stat().st_size if part.is_file() else 0
        needed += max(0, (size or 0) - already) + file.unpacked_bytes
    free = shutil.disk_usage(directory).free
    logger.info("Needs %.2f GB in %s, %.2f GB are free.", needed / 1e9, directory, free / 1e9)
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{directory} must have {needed / 1e9:.2f} GB free, got {free / 1e9:.2f} GB. "
            "Make room or choose another folder.",
        )


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _fetch(url: str, target: Path, size: int | None, resumes: bool, progress: bool) -> Path:
    """Download to `target`.part, continue a part that is there, and return its path."""
    part = _part(target)
    if not resumes or size is None or (part.is_file() and part.stat().st_size > size):
        part.unlink(missing_ok=True)
    for tries_left in reversed(range(_TRIES)):
        have = part.stat().st_size if part.is_file() else 0
        if size is not None and have == size:
            return part
        headers = {"Accept-Encoding": "identity"}
        if have and resumes:
            headers["Range"] = f"bytes={have}-"
        get = pooch.HTTPDownloader(
            progressbar=progress, chunk_size=2**17, headers=headers, timeout=_TIMEOUT
        )
        try:
            with part.open("ab" if resumes else "wb") as stream:
                get(url, stream, None)
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code < 500
            if refused or not tries_left:
                raise OSError(
                    f"Download of {url} stopped ({error}). Run it again to continue."
                ) from error
            time.sleep(_SECONDS_BETWEEN_TRIES)
        else:
            break
    have = part.stat().st_size
    if size is not None and have != size:
        if have > size:
            part.unlink()
        raise OSError(
            f"Download of {url} must have {size} bytes, got {have}. Run it again to continue."
        )
    return part


def _verify(part: Path, url: str, sha256: str | None) -> None:
    found = pooch.file_hash(str(part))
    if sha256 is None:
        logger.info("%s: no published hash; its SHA-256 is now kept: %s", url, found)
    elif found != sha256:
        part.unlink()
        raise ValueError(
            f"{url} must have SHA-256 {sha256}, got {found}. The download was removed: it was "
            "damaged on its way, or the file has changed. Run it again."
        )


def _unpack(archive: Path, directory: Path, folder: str, sums: dict[str, str]) -> None:
    """Unpack `folder` of a zip archive, add the hashes of its files to `sums`, remove the archive.

    The files get their place after all are unpacked and their hashes written, so that a call that
    is interrupted leaves nothing behind that looks complete.
    """
    temporary = directory / f".{folder}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as source:
            names = [info.filename for info in source.infolist() if not info.is_dir()]
            _check_members(archive, names)
            names = [name for name in names if name.startswith(f"{folder}/")]
            if not names:
                raise ValueError(f"{archive} must have a folder {folder}/ in it, got none.")
            for name in names:
                source.extract(name, temporary)  # checks the CRC-32
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise ValueError(
            f"{archive} was damaged and is removed ({error}). Run it again."
        ) from error
    sums.update({name: pooch.file_hash(str(temporary / name)) for name in names})
    _write_sums(directory, sums)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).replace(directory / name)
    shutil.rmtree(temporary)
    archive.unlink()
    _write_sums(directory, sums)


def _check_members(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            archive.unlink()
            raise ValueError(
                f"{archive} wants to write outside of its folder ({name!r}). It was removed."
            )


def _read_sums(directory: Path) -> dict[str, str]:
    file = directory / _SUMS
    if not file.is_file():
        return {}
    lines = (line.split("  ", 1) for line in file.read_text().splitlines() if "  " in line)
    return {path.removeprefix("# "): sha256.removeprefix("# ") for sha256, path in lines}


def _write_sums(directory: Path, sums: dict[str, str]) -> None:
    """Write the hashes; those of files that were removed after unpacking become comments."""
    lines = []
    for path, sha256 in sorted(sums.items()):
        comment = "" if (directory / path).is_file() else "# "
        lines.append(f"{comment}{sha256}  {path}\n")
    with replacing(directory / _SUMS) as temporary:
        temporary.write_text("".join(lines))
