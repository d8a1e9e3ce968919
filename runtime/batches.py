"""A bundle for other numbers of samples than it was recorded with."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .calls import in_batch
from .dynamic import Scale
from .engine import Array
from .errors import EngineError
from .manifest import Manifest

__all__ = ["count", "limited", "repeated", "resized", "samples_of"]


def count(batch: int) -> int:
    """Return a number of samples that a caller gave.

    Raises:
        EngineError: if it is no integer.
    """
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer):
        raise EngineError(f"batch is {batch!r}, expected a number of samples")
    return int(batch)


def resized(manifest: Manifest, samples: int) -> Manifest:
    """Return the manifest with the shapes of another number of samples.

    Raises:
        EngineError: if the bundle doesn't serve so many.
    """
    least, most = manifest.batches
    if not least <= samples <= most:
        expected = f"{least} to {most}" if manifest.dynamic else f"{most}"
        opened = " or opened for" if manifest.dynamic else ""
        raise EngineError(
            f"a batch of {samples} samples, expected {expected} as the bundle was compiled "
            f"for{opened}; compile it for others with --dynamic batch=LEAST..MOST"
        )
    before, dynamic = manifest.samples, manifest.dynamic
    if dynamic is None or samples == before:
        return manifest
    scale = Scale(dynamic, before, samples)
    return replace(
        manifest,
        inputs=tuple(scale.entry(entry) for entry in manifest.inputs),
        outputs=tuple(scale.entry(entry) for entry in manifest.outputs),
        slots=tuple(scale.entry(entry) for entry in manifest.slots),
        prologue=None if manifest.prologue is None else manifest.prologue.scaled(scale),
    )


def limited(manifest: Manifest, most: int) -> Manifest:
    """Return the manifest for no more samples than `most`, with those shapes.

    Raises:
        EngineError: if the bundle doesn't serve so many.
    """
    found = resized(manifest, most)
    if manifest.dynamic is None:
        return found
    return replace(found, dynamic=replace(manifest.dynamic, most=most))


def samples_of(manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many samples inputs of these shapes hold, by the first that tells."""
    if manifest.dynamic is None:
        return manifest.samples
    for entry in manifest.inputs:
        axis = manifest.dynamic.axes.get(entry.name)
        shape = shapes.get(entry.name)
        if axis is not None and shape is not None and len(shape) == len(entry.shape):
            rows = entry.shape[axis] // manifest.samples
            return shape[axis] // rows
    return manifest.samples


def repeated(manifest: Manifest, recorded: Mapping[str, Array]) -> dict[str, Array]:
    """Return recorded inputs for the samples of a manifest: repeated in turn, or the first.

    Args:
        manifest: whose shapes are wanted; of a range of batch sizes, or as recorded.
        recorded: arrays by input's name, of any number of samples.
    """
    axes = {} if manifest.dynamic is None else manifest.dynamic.axes
    found = dict(recorded)
    for info in manifest.inputs:
        if info.name not in recorded or info.name not in axes:
            continue
        axis, array = axes[info.name], recorded[info.name]
        if array.shape != info.shape:
            index = _index(array.shape[axis], info.shape[axis], 2 if in_batch(manifest.cfg) else 1)
            found[info.name] = array.take(index, axis)
    return found


def _index(before: int, after: int, halves: int) -> npt.NDArray[np.int64]:
    """Return which row each is: halves of guidance each by itself."""
    half = before // halves
    rows = np.arange(after // halves) % half
    return np.concatenate([part * half + rows for part in range(halves)])
