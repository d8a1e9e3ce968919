"""Make a bundle's inputs from the arguments of a denoiser's call, or say what is wrong."""

from collections.abc import Mapping

import numpy as np

from .arguments import ArgumentsInfo, digest_of_array
from .batches import resized
from .calls import in_batch
from .engine import Array
from .errors import EngineError
from .inputs import check_array
from .manifest import InputInfo, Manifest

__all__ = ["CallInputs"]

AGAIN = "call the pipeline as it was recorded, or record and compile it again"


class CallInputs:
    """What a bundle takes of a denoiser's call.

    Args:
        manifest: says the inputs.
        arguments: says where each is in the call.
    """

    def __init__(self, manifest: Manifest, arguments: ArgumentsInfo) -> None:
        self._manifest = manifest
        self._arguments = arguments
        self._known = {*arguments.constants, *arguments.digests, *arguments.paths.values()}

    def path_of(self, role: str) -> str | None:
        """Return where the call has the latents or the timestep, None if nowhere."""
        info = self._manifest.input_of(role)
        return None if info is None else self._arguments.paths[info.name]

    def arrays(self, leaves: Mapping[str, object]) -> dict[str, Array]:
        """Return the inputs by name.

        Args:
            leaves: the call's arguments by dotted path, tensors as arrays.

        Raises:
            EngineError: if one is missing, unknown, of another shape or kind, or another than
                what the denoiser was captured with where it decided by that what to compute.
        """
        for path, value in leaves.items():
            self._check(path, value)
        inputs = self._sized(leaves).inputs
        ordered = sorted(inputs, key=lambda info: info.role != "latents")
        return {info.name: self._array(info, leaves) for info in ordered}

    def _sized(self, leaves: Mapping[str, object]) -> Manifest:
        """Return the manifest for the call's batch, where the bundle serves several."""
        path = self.path_of("latents")
        latents = None if path is None else leaves.get(path)
        if self._manifest.dynamic is None or not isinstance(latents, np.ndarray):
            return self._manifest
        halves = 2 if in_batch(self._manifest.cfg) else 1
        return resized(self._manifest, latents.shape[0] // halves)

    def _check(self, path: str, value: object) -> None:
        """Refuse what the bundle was not made for; what isn't given is what isn't checked."""
        if path in self._arguments.digests and isinstance(value, np.ndarray):
            if digest_of_array(value) != self._arguments.digests[path]:
                raise EngineError(
                    f"argument {path} has other values than were captured, and the denoiser "
                    f"decides by them what to compute: {AGAIN}"
                )
            return
        if path in self._arguments.constants:
            constant = self._arguments.constants[path]
            if isinstance(value, np.ndarray) or constant not in (value, repr(value)):
                found = "a tensor" if isinstance(value, np.ndarray) else repr(value)
                raise EngineError(
                    f"argument {path} is {found}, the denoiser was captured with {constant!r}: "
                    f"{AGAIN}"
                )
            return
        if path not in self._known and value is not None:
            raise EngineError(
                f"argument {path} isn't known, the denoiser was captured without it: {AGAIN}"
            )

    def _array(self, info: InputInfo, leaves: Mapping[str, object]) -> Array:
        path = self._arguments.paths[info.name]
        value = leaves.get(path)
        if not isinstance(value, np.ndarray):
            found = "missing" if value is None else f"a {type(value).__name__}"
            raise EngineError(f"argument {path} is {found}, expected a tensor {list(info.shape)}")
        if value.shape != info.shape:
            raise EngineError(
                f"argument {path} is {list(value.shape)}, the bundle has {list(info.shape)}: "
                f"{self._reason(info, value.shape)}"
            )
        if np.dtype(info.dtype).kind in "iu" and value.dtype.kind == "f":
            value = _whole(path, value)
        return check_array(info, value)

    def _reason(self, info: InputInfo, found: tuple[int, ...]) -> str:
        """Say what in a pipeline's call makes an input's shape what it is."""
        if info.role == "latents" and len(found) == len(info.shape):
            if found[1:] != info.shape[1:]:
                return f"it is of another resolution or length; {AGAIN}"
            if in_batch(self._manifest.cfg) and 2 * found[0] == info.shape[0]:
                return (
                    "guidance is off, or there are half as many samples; the bundle has both "
                    f"halves of guidance in its batch; {AGAIN}"
                )
            if found[0] == 2 * info.shape[0] and not in_batch(self._manifest.cfg):
                return (
                    "guidance has both halves in one batch, or there are twice as many samples; "
                    f"{AGAIN}"
                )
            return f"prompts times images per prompt are of another number; {AGAIN}"
        return AGAIN


def _whole(path: str, value: Array) -> Array:
    """Return floats as the integers that they are."""
    whole: Array = np.rint(value).astype(np.int64)
    if not np.array_equal(whole, value):
        raise EngineError(
            f"argument {path} is {value.flat[0]:g}, which the bundle has as an integer: capture "
            "with a floating-point timestep"
        )
    return whole
