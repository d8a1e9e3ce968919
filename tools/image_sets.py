"""Read sets of images: a folder of PNGs or of .npy arrays, or one file of either."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ditc.runtime.errors import DitcError

from .arrays import read_array

__all__ = ["ImageSet", "read_images", "read_pair"]

OVERSHOOT = 2.0
"""How far pixels may lie from 0: samplers leave [-1, 1] by a little, bytes by far."""
MAX_VALUES = 2**30


@dataclass(frozen=True)
class ImageSet:
    """Images and the names of the files they come from.

    Attributes:
        images: `[samples, channels, height, width]` with 1 or 3 channels, about in [-1, 1].
        names: of the files, in order; one holds several images if it is an array.
    """

    images: npt.NDArray[np.float32]
    names: tuple[str, ...]


def read_pair(first: Path, second: Path) -> tuple[ImageSet, ImageSet]:
    """Read two sets whose images go together one by one, in the order of the files' names.

    Raises:
        DitcError: if one can't be read, or shapes or counts don't match, or, where both have a file
            an image, the files' names less their endings.
    """
    before, after = read_images(first), read_images(second)
    shapes = [list(found.images.shape) for found in (before, after)]
    if shapes[0] != shapes[1]:
        raise DitcError(
            f"{first} holds images {shapes[0]}, {second} {shapes[1]}: expected as many of one size"
        )
    if all(len(found.names) == len(found.images) > 1 for found in (before, after)):
        mine, theirs = ({Path(name).stem: name for name in s.names} for s in (before, after))
        other = sorted(mine.keys() ^ theirs.keys())
        if other:
            name = {**mine, **theirs}[other[0]]
            raise DitcError(
                f"{first} and {second} don't go together: {name} is in one of them only"
            )
    return before, after


def read_images(place: Path) -> ImageSet:
    """Read a folder of PNGs or of .npy arrays, or one file of either.

    Arrays are `[samples, channels, height, width]` or one image less the first axis: floats in
    [-1, 1], or bytes.

    Raises:
        DitcError: naming the file at fault, what was expected and what was found.
    """
    files = [place] if place.is_file() else _files(place)
    parts = [_png(path) if path.suffix.lower() == ".png" else _array(path) for path in files]
    for path, part in zip(files, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise DitcError(
                f"{path}: holds images {list(part.shape[1:])}, expected {list(parts[0].shape[1:])} "
                f"as in {files[0].name}"
            )
    return ImageSet(np.concatenate(parts), tuple(path.name for path in files))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DitcError(f"{folder}: no folder of images, no .png and no .npy file is there")
    found = {end: sorted(folder.glob(f"*{end}")) for end in (".png", ".npy")}
    if bool(found[".png"]) == bool(found[".npy"]):
        what = "both" if found[".png"] else "neither"
        raise DitcError(f"{folder}: expected .png or .npy files, found {what}")
    return found[".png"] or found[".npy"]


def _png(path: Path) -> npt.NDArray[np.float32]:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DitcError(f"{path}: is no PNG that can be read: {error}") from error
    if mode not in ("L", "RGB"):
        raise DitcError(f"{path}: has pixels of mode {mode}, expected grey (L) or RGB, 8 bits each")
    channels = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    return _scaled(channels[None])


def _array(path: Path) -> npt.NDArray[np.float32]:
    found = read_array(path, str(path), mapped=True)
    images = found[None] if found.ndim == 3 else found
    known = found.dtype == np.uint8 or np.issubdtype(found.dtype, np.floating)
    fits = images.ndim == 4 and images.shape[1] in (1, 3) and 0 < images.size <= MAX_VALUES
    if not (known and fits):
        raise DitcError(
            f"{path}: is {found.dtype} {list(found.shape)}, expected floats or bytes [samples, 1 "
            "or 3, height, width]"
        )
    if found.dtype == np.uint8:
        return _scaled(images.astype(np.uint8, copy=False))
    values = images.astype(np.float32)
    if not np.isfinite(values).all():
        raise DitcError(f"{path}: holds values that aren't finite")
    largest = float(np.abs(values).max())
    if largest > OVERSHOOT:
        raise DitcError(
            f"{path}: holds {largest:g}, expected pixels in [-1, 1], or bytes (uint8) up to 255"
        )
    return values


def _scaled(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Map bytes to [-1, 1]."""
    return (pixels / 127.5 - 1).astype(np.float32)
