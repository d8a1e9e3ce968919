"""The seam to what runs graphs: a backend loads a bundle's buckets, an engine runs one of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .manifest import Manifest

__all__ = ["Array", "Backend", "Engine", "OnDevice", "Rebindable", "Resizable"]

Array = npt.NDArray[np.generic]


class Engine(Protocol):
    """One loaded graph, its slots bound at load to buffers that all engines of a bundle share."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; slots are read and written in place.

        Args:
            arrays: the graph's `inputs` by name, C-contiguous, of the manifest's shapes and
                dtypes; some are views of larger arrays.

        Returns:
            Every output but slots by name, in arrays that belong to the caller.

        Raises:
            EngineError: if the engine fails; the message names the bucket.
        """
        ...


@runtime_checkable
class Rebindable(Protocol):
    """An engine whose graph can run on other slots of the bundle too, as two calls a step want."""

    def bound(self, slots: Mapping[str, str]) -> Engine:
        """Return an engine of the same graph and weights.

        Args:
            slots: for each slot that the graph names the bundle's slot it is bound to.
        """
        ...


@runtime_checkable
class OnDevice(Protocol):
    """An engine that knows the memory of the device it runs on."""

    @property
    def used_bytes(self) -> int:
        """Bytes of the device's memory in use, by whomever."""
        ...


@runtime_checkable
class Resizable(Protocol):
    """An engine whose graph serves several batch sizes."""

    def resize(self, sized: Manifest) -> None:
        """Take the shapes of another number of samples, for inputs, outputs and slots.

        Args:
            sized: the manifest at that number; slots hold nothing then.
        """
        ...


class Backend(Protocol):
    """Loads buckets for one kind of engine."""

    def load(
        self, root: Path, manifest: Manifest, weights: Mapping[str, Array]
    ) -> Mapping[str, Engine]:
        """Return an engine for every graph of the manifest, by the graph's name.

        Those of buckets come bound to the slots that `manifest.slots_of` tells.

        Args:
            root: the bundle's folder, its files already checked.
            manifest: what to load.
            weights: the weight store, read-only views of one memory map.

        Raises:
            EngineError: if what is asked for isn't there.
        """
        ...
