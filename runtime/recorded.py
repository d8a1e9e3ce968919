"""Read the conditioning of the calls that a bundle was compiled with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .calls import calls_of
from .engine import Array
from .errors import BundleError
from .manifest import CONDITIONING_FILE, InputInfo, Manifest
from .weights import map_tensors

__all__ = ["read_recorded", "recorded_name"]


def recorded_name(name: str, call: str) -> str:
    """Return the name of an input's tensor in the file; the unconditional call has its own."""
    return f"{name}@uncond" if call == "uncond" else name


def read_recorded(root: Path, manifest: Manifest) -> dict[str, dict[str, Array]]:
    """Return for each call of a step its conditioning, by input name.

    Raises:
        BundleError: if a tensor is missing, or of another shape or dtype than its input.
    """
    conditions = [info for info in manifest.inputs if info.role == "condition"]
    path = root / manifest.file(CONDITIONING_FILE)
    tensors = map_tensors(path) if conditions else {}
    return {
        call: {
            info.name: _checked(path, info, recorded_name(info.name, call), tensors)
            for info in conditions
        }
        for call in calls_of(manifest.cfg)
    }


def _checked(path: Path, info: InputInfo, name: str, tensors: Mapping[str, Array]) -> Array:
    found = tensors.get(name)
    if found is None or found.shape != info.shape or found.dtype != info.dtype:
        kind = "nothing" if found is None else f"{found.dtype} {found.shape}"
        raise BundleError(
            f"{path}: holds {kind} for {name!r}, expected "
            f"{info.dtype} {info.shape}; compile the bundle again"
        )
    return np.array(found)
