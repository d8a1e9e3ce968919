"""Turn latents in pixel space into pictures."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ditc.runtime.errors import DitcError

__all__ = ["check_pictures", "comparison", "grid", "save_grid", "save_images", "to_bytes"]

Pixels = npt.NDArray[np.uint8]
INK, PAPER, FAINT = (28, 30, 36), (250, 250, 248), (120, 124, 132)


def to_bytes(latents: npt.NDArray[np.float32]) -> Pixels:
    """Map pixels from [-1, 1] to 0…255.

    Args:
        latents: `[samples, channels, height, width]` with 1 or 3 channels.

    Returns:
        `[samples, height, width, 3]`.

    Raises:
        DitcError: if there are other numbers of channels: those are latents, not pixels.
    """
    check_pictures(latents.shape)
    scaled = np.clip((latents + 1) * 127.5, 0, 255).round().astype(np.uint8)
    pixels: Pixels = np.broadcast_to(
        scaled.transpose(0, 2, 3, 1), (*scaled.shape[:1], *scaled.shape[2:], 3)
    ).copy()
    return pixels


def check_pictures(shape: Sequence[int]) -> None:
    """Refuse a shape that isn't `[samples, channels, height, width]` with 1 or 3 channels.

    Raises:
        DitcError: if it is another: those are latents, not pixels.
    """
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise DitcError(
            f"result {list(shape)} is no picture of 1 or 3 channels: write it as .npy and decode it"
        )


def save_images(latents: npt.NDArray[np.float32], path: Path) -> None:
    """Write samples side by side as one PNG."""
    pixels = to_bytes(latents)
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(path)


def save_grid(pictures: Pixels, path: Path) -> None:
    """Write pictures `[samples, height, width, 3]` as one PNG, in a grid."""
    Image.fromarray(grid(pictures)).save(path)


def grid(pictures: Pixels) -> Pixels:
    """Return pictures `[samples, …, height, width, 3]` as one, in rows as near a square as can be.

    Where the last row isn't full there is black.
    """
    count = len(pictures)
    columns = ceil(sqrt(count))
    rows = ceil(count / columns)
    padding = np.zeros((rows * columns - count, *pictures.shape[1:]), np.uint8)
    cells = np.concatenate([pictures, padding]).reshape(rows, columns, *pictures.shape[1:])
    lines = [np.concatenate(list(line), axis=-2) for line in cells]
    whole: Pixels = np.concatenate(lines, axis=-3)
    return whole


def comparison(
    rows: Sequence[tuple[str, str, Pixels]], title: str, path: Path, *, zoom: int = 3
) -> None:
    """Write a picture of several rows of images, each with a heading and a note under it.

    Args:
        rows: heading, note, and images `[samples, height, width, 3]`, equally many in each.
        title: line above all rows.
        path: file to write, as PNG.
        zoom: screen pixels a pixel.
    """
    images = rows[0][2]
    count, height, width = images.shape[:3]
    cell, gap, left, top = (width * zoom, height * zoom), 4, 24, 64
    label = 210
    canvas = Image.new(
        "RGB",
        (left * 2 + label + count * (cell[0] + gap), top + len(rows) * (cell[1] + 20) + 8),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((left, 20), title, INK, ImageFont.load_default(20))
    for number, (heading, note, pixels) in enumerate(rows):
        y = top + number * (cell[1] + 20)
        draw.text((left, y + cell[1] // 2 - 20), heading, INK, ImageFont.load_default(17))
        draw.text((left, y + cell[1] // 2 + 4), note, FAINT, ImageFont.load_default(13))
        for index, image in enumerate(pixels):
            x = left + label + index * (cell[0] + gap)
            canvas.paste(Image.fromarray(image).resize(cell, Image.Resampling.LANCZOS), (x, y))
    canvas.save(path)
