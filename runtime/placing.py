"""Where the tensors of a bundle lie on a device: weights, slots, inputs and outputs, each once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .cuda import Device
from .engine import Array
from .manifest import Manifest
from .weights import check_weights

__all__ = ["place"]

ALIGNMENT = 256


@dataclass
class _Arena:
    """Places in one piece of memory, of which only the size is known until it is allocated."""

    nbytes: int = 0

    def take(self, nbytes: int) -> int:
        """Return the offset of a new place."""
        offset = self.nbytes
        self.nbytes += -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        return offset


def place(
    device: Device, manifest: Manifest, weights: Mapping[str, Array], values: Mapping[str, int]
) -> dict[str, int]:
    """Allocate memory for all that engines are given, upload the weights, and return addresses.

    Weights are copied once, whatever the number of engines. Slots of one storage have one place.
    Inputs and outputs of a name have one place, as large as the largest: they are written before
    each run, and read after it.

    Args:
        device: to lie on.
        manifest: what graphs take and give.
        weights: the weight store.
        values: bytes of each input and output, by name.

    Raises:
        EngineError: if memory runs out.
        BundleError: if an engine takes a weight that isn't in the store.
    """
    return {
        **_place_weights(device, manifest, weights),
        **_place_slots(device, manifest),
        **_place_values(device, values),
    }


def _place_weights(
    device: Device, manifest: Manifest, weights: Mapping[str, Array]
) -> dict[str, int]:
    check_weights(manifest, weights)
    arena = _Arena()
    names = dict.fromkeys(name for graph in manifest.graphs for name in graph.weights)
    offsets = {name: arena.take(weights[name].nbytes) for name in names}
    start = device.allocate(arena.nbytes, "weights")
    for name, offset in offsets.items():
        device.upload(start + offset, np.ascontiguousarray(weights[name]))
        device.synchronize()  # one tensor of the store in memory at a time
    return {name: start + offset for name, offset in offsets.items()}


def _place_slots(device: Device, manifest: Manifest) -> dict[str, int]:
    arena = _Arena()
    offsets = {number: arena.take(nbytes) for number, nbytes in manifest.storage_bytes.items()}
    start = device.allocate(arena.nbytes, "slots")
    return {slot.name: start + offsets[slot.storage] for slot in manifest.slots}


def _place_values(device: Device, sizes: Mapping[str, int]) -> dict[str, int]:
    arena = _Arena()
    offsets = {name: arena.take(nbytes) for name, nbytes in sizes.items()}
    start = device.allocate(arena.nbytes, "inputs and outputs")
    return {name: start + offset for name, offset in offsets.items()}
