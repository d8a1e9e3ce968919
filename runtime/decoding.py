"""Decode latents with a bundle's decoder, one picture after the other."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .decoder import DECODER, DecoderInfo
from .engine import Array, Engine
from .entries import BucketInfo
from .errors import EngineError
from .inputs import as_array, check_array
from .manifest import Manifest

__all__ = ["Pixels", "decode", "decoder_manifest"]

Pixels = npt.NDArray[np.uint8]


def decoder_manifest(manifest: Manifest, info: DecoderInfo) -> Manifest:
    """Return a manifest of the decoder alone: a program of one step, as backends load them."""
    bucket = BucketInfo(
        name=DECODER,
        graph=info.graph,
        steps=(0,),
        inputs=(info.input.name,),
        reads=(),
        writes=(),
        methods={},
        multiply_adds=info.multiply_adds,
        weights=info.weights,
    )
    return replace(
        manifest,
        cfg=None,
        steps=1,
        inputs=(info.input,),
        outputs=(info.output,),
        slots=(),
        buckets=(bucket,),
        sampler=None,
        curve=None,
        prologue=None,
        calls=(),
        arguments=None,
        dynamic=None,
        equal_halves=False,
        decoder=None,
        asked=None,
        rows={},
    )


def decode(
    info: DecoderInfo,
    engine: Engine,
    latents: npt.ArrayLike,
    done: Callable[[int, int], object] | None = None,
) -> Pixels:
    """Return the pixels of latents, picture by picture.

    Args:
        info: of the decoder.
        engine: its loaded graph.
        latents: `[samples, …]`, as `Bundle.generate` returns them.
        done: called after each picture with its number and their count.

    Returns:
        uint8 `[samples, height, width, 3]`, of videos `[samples, frames, height, width, 3]`.

    Raises:
        EngineError: if the latents have another shape or aren't finite, or the decoder's pixels
            aren't.
    """
    given = as_array("latents", latents)
    _check_shape(info, given)
    samples = given if info.frames_axis is None else np.moveaxis(given, info.frames_axis, 1)
    front = samples.shape[: 1 if info.frames_axis is None else 2]
    pictures = samples.reshape(-1, 1, *info.input.shape[1:])
    pixels = np.empty((len(pictures), *info.output.shape[2:], 3), np.uint8)
    for number, picture in enumerate(pictures):
        array = check_array(info.input, picture)
        pixels[number] = _bytes(engine.run({info.input.name: array})[info.output.name])
        if done is not None:
            done(number, len(pictures))
    return pixels.reshape(*front, *pixels.shape[1:])


def _check_shape(info: DecoderInfo, given: Array) -> None:
    expected: list[int | str] = ["samples", *info.input.shape[1:]]
    if info.frames_axis is not None:
        expected.insert(info.frames_axis, "frames")
    fits = given.ndim == len(expected) and all(
        isinstance(size, str) or found == size
        for found, size in zip(given.shape, expected, strict=True)
    )
    if not fits:
        listed = ", ".join(str(size) for size in expected)
        raise EngineError(f"latents have shape {given.shape}, expected ({listed}) to decode")


def _bytes(image: Array) -> Pixels:
    """Return one picture `[1, channels, height, width]` as `[height, width, 3]`."""
    if not np.isfinite(image).all():
        raise EngineError("the decoder makes numbers that aren't finite of these latents")
    whole = np.clip(np.rint(image[0]), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    pixels: Pixels = np.broadcast_to(whole, (*whole.shape[:2], 3))
    return pixels
