"""Recorded conditioning for another number of samples."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .calls import in_batch
from .engine import Array
from .manifest import Manifest

__all__ = ["repeated"]


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
