"""What `ditc run` writes: latents as they are, pictures, videos."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError
from ditc.runtime.guidance import latents_shape
from ditc.runtime.manifest import Manifest

from .images import check_pictures, save_grid, save_images
from .progress import progress
from .videos import check_writer, save_video

__all__ = ["FPS", "SUFFIXES", "check_makes", "write"]

SUFFIXES = (".png", ".npy", ".gif", ".mp4")
VIDEOS = (".gif", ".mp4")
FPS = 24
"""Frames a second of a video file, unless told otherwise."""


def check_makes(manifest: Manifest, out: Path) -> None:
    """Refuse a file that a bundle can't make, before it works for nothing.

    Raises:
        DitcError: that says what it can make.
    """
    latents, decoder = manifest.input_of("latents"), manifest.decoder
    if out.suffix == ".npy" or latents is None:
        return
    if decoder is None and out.suffix in VIDEOS:
        raise DitcError(
            f"--out {out}: the bundle has no decoder that makes frames: write its latents as .npy "
            "and decode them"
        )
    if decoder is None:
        check_pictures(latents_shape(manifest, latents))
        return
    frames = decoder.frames_axis is not None
    if frames != (out.suffix in VIDEOS):
        made, fits = ("videos", ".gif or .mp4") if frames else ("pictures", ".png")
        raise DitcError(f"--out {out}: the bundle makes {made}: write them as {fits}, or .npy")
    check_writer(out)


def write(bundle: Bundle, latents: npt.NDArray[np.float32], out: Path, fps: int) -> tuple[int, ...]:
    """Write what a bundle generated, decoded unless it is an array that is asked for.

    Args:
        bundle: that generated it.
        latents: what it generated.
        out: file to write.
        fps: frames a second of a video.

    Returns:
        The shape of what was written.

    Raises:
        OSError: if it can't be written.
    """
    decoder = bundle.manifest.decoder
    if out.suffix == ".npy":
        np.save(out, latents)
        return latents.shape
    if decoder is None:
        save_images(latents, out)
        return latents.shape
    axis = decoder.frames_axis
    count = latents.shape[0] * (1 if axis is None else latents.shape[axis])
    with progress("decode", count) as advance:
        pixels = bundle.decode(latents, done=lambda *_: advance())
    if decoder.frames_axis is None:
        save_grid(pixels, out)
    else:
        save_video(pixels, out, fps)
    return pixels.shape
