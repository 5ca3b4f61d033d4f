"""Pictures: PNG, JPEG and BMP files."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from vimunet.io.image import LazyImage, WithoutAlpha


def open_picture(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open a picture, see `vimunet.io.formats.READERS`."""
    with _any_size(), Image.open(path) as picture:
        mode, (width, height) = picture.mode, picture.size
        transparent = "transparency" in picture.info
    with path.open("rb") as file:
        header = file.read(26)
    dtype, convert = np.dtype({"1": "bool", "F": "float32"}.get(mode, "uint8")), None
    if path.suffix.lower() == ".png" and header[24] == 16:  # bits, then the kind of colour
        mode = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[header[25]]
        dtype = np.dtype("uint16")
    elif mode == "P" and not indices:
        convert = mode = "RGBA" if transparent else "RGB"
    elif mode in ("CMYK", "YCbCr", "PA"):
        convert = mode = "RGB"
    channels = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    shape = (height, width) if channels == 1 else (height, width, channels)
    array: Any = _Picture(path, shape, dtype, convert)
    if mode in ("LA", "RGBA"):
        array = WithoutAlpha(array, (*shape[:-1], channels - 1))
    return LazyImage(array, "yx" if channels == 1 else "yxs", name=str(path))


class _Picture:
    """A PNG, JPEG or BMP file that is decoded when it is sliced."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, convert: str | None):
        self.path, self.shape, self.dtype, self.convert = path, shape, dtype, convert

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        if self.dtype == np.uint16:  # Pillow reads colours with 8 bit only
            return imagecodecs.png_decode(self.path.read_bytes())[index]
        with _any_size(), Image.open(self.path) as picture:
            return np.array(picture.convert(self.convert) if self.convert else picture)[index]


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open pictures of more than 179 million pixels, as all other formats are."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
