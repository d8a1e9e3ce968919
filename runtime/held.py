"""Timesteps that graphs hold: what a step is given has to be what its graph computes with."""

from collections.abc import Mapping

import numpy as np

from .engine import Array
from .errors import EngineError
from .manifest import Manifest

__all__ = ["check_held_timestep"]


def check_held_timestep(manifest: Manifest, step: int, arrays: Mapping[str, Array]) -> None:
    """Refuse another timestep than the sampler's where the graph of a step holds that.

    Args:
        manifest: the bundle's.
        step: from 0.
        arrays: the program's inputs by name.

    Raises:
        EngineError: naming the step.
    """
    info, sampler = manifest.input_of("timestep"), manifest.sampler
    holds = any(step in bucket.steps for bucket in manifest.buckets if bucket.holds_timestep)
    if not holds or info is None or sampler is None:
        return
    given, held = arrays[info.name], sampler.timesteps[step]
    if not np.array_equal(given, np.full(given.shape, held, given.dtype)):
        raise EngineError(
            f"step {step}: {info.name} is {given.flat[0]:g}, but its graph holds {held:g}: give it "
            "that, or compile without folding timesteps"
        )
