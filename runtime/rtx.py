"""Run engines in TensorRT-RTX or TensorRT: one copy of the weights, slots in place, shared scratch.

Weights lie on the device once and are bound to the inputs of every engine that takes them. Slots
lie there too, and inputs and outputs of a name, each once for all engines. Activations share one
memory, since no two engines run at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from .batches import resized
from .cuda import Device, open_device
from .dtypes import array_dtype
from .engine import Array
from .errors import BundleError, EngineError
from .manifest import Graph, Manifest, SlotInfo
from .placing import place
from .rtx_engine import Loaded
from .rtx_library import Library

__all__ = ["TensorRtBackend", "TensorRtEngine"]


@dataclass(frozen=True)
class TensorRtBackend:
    """Loads engines into the library that built them.

    Attributes:
        cuda_graphs: whether each engine's work is recorded once and launched as one graph.
        device: to run on, the machine's first GPU if None.
        module: the TensorRT module, imported by the name in the manifest if None.
    """

    cuda_graphs: bool = False
    device: Device | None = None
    module: ModuleType | None = None

    def load(
        self, root: Path, manifest: Manifest, weights: Mapping[str, Array]
    ) -> dict[str, "TensorRtEngine"]:
        """Return an engine a graph, all on the same weights, slots and scratch.

        Raises:
            EngineError: if library, driver or GPU are missing, too old or others than the engines
                were built for, or memory runs out.
            BundleError: if an engine doesn't fit the manifest.
        """
        info = manifest.engine
        if info is None:
            raise BundleError(f"the bundle's target is {manifest.target!r}, which has no engines")
        library = Library(info, self.module)
        device = self.device or open_device()
        library.check_device(device)
        loaded = {graph.name: library.load(root, graph) for graph in manifest.graphs}
        for engine in loaded.values():
            engine.check(manifest)
        largest = resized(manifest, manifest.batches[1])
        values: dict[str, int] = {}
        for engine in loaded.values():
            for name, nbytes in engine.value_bytes(largest).items():
                values[name] = max(nbytes, values.get(name, 0))
        placed = place(device, largest, weights, values)
        scratch = max(engine.scratch_bytes for engine in loaded.values())
        room = device.allocate(scratch, "activations")
        shared = _Shared(
            manifest, device, placed, (room, scratch), self.cuda_graphs, _lasting(manifest)
        )
        return {
            graph.name: TensorRtEngine(
                shared, graph, loaded[graph.name], manifest.slots_of(graph.name)
            )
            for graph in manifest.graphs
        }


@dataclass(frozen=True)
class _Shared:
    """What all engines of a bundle have in common.

    Attributes:
        manifest: of the bundle.
        device: they run on.
        addresses: of weights, slots, inputs and outputs, by name.
        scratch: address and bytes of what they need while they run.
        cuda_graphs: whether each launches its work as one graph.
        lasting: names of values that stay as they are over the steps of a prompt.
        held: of these the arrays that lie on the device, by name.
    """

    manifest: Manifest
    device: Device
    addresses: Mapping[str, int]
    scratch: tuple[int, int]
    cuda_graphs: bool
    lasting: frozenset[str]
    held: dict[str, Array] = field(default_factory=dict)


class TensorRtEngine:
    """An engine with everything bound to its place on the device."""

    def __init__(
        self, shared: _Shared, graph: Graph, loaded: Loaded, slots: Mapping[str, SlotInfo]
    ) -> None:
        self._shared, self._graph, self._loaded = shared, graph, loaded
        self._slots = {name: slot.name for name, slot in slots.items()}
        held = {name: shared.addresses[slot] for name, slot in self._slots.items()}
        self._context = loaded.context({**shared.addresses, **held}, shared.scratch)
        self._record_at = 1 if shared.cuda_graphs else None
        self.resize(shared.manifest)

    def resize(self, sized: Manifest) -> None:
        """Take the shapes of another number of samples; see `Resizable.resize`."""
        graph = next(graph for graph in sized.graphs if graph.name == self._graph.name)
        self._outputs = sized.outputs_of(graph)
        shapes = {slot.name: slot.shape for slot in sized.slots}
        for name in self._loaded.ranged & set(graph.reads):
            self._context.set_shape(name, shapes[self._slots[name]])
        self._launch = self._enqueue
        self._runs = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the device's memory in use, by whomever."""
        return self._shared.device.used_bytes

    def bound(self, slots: Mapping[str, str]) -> "TensorRtEngine":
        """Return an engine of the same plan on other slots; see `Rebindable.bound`."""
        known = {slot.name: slot for slot in self._shared.manifest.slots}
        named = {name: known[slot] for name, slot in slots.items()}
        return TensorRtEngine(self._shared, self._graph, self._loaded, named)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; see `Engine.run`."""
        device, addresses = self._shared.device, self._shared.addresses
        outputs: dict[str, Array] = {
            info.name: np.empty(info.shape, array_dtype(info.dtype)) for info in self._outputs
        }
        try:
            for name, array in arrays.items():
                if self._shared.held.get(name) is not array:
                    device.upload(addresses[name], array)
                if name in self._shared.lasting:
                    self._shared.held[name] = array
                if name in self._loaded.ranged:
                    self._context.set_shape(name, array.shape)
            if self._runs == self._record_at:  # the first run prepares what a graph can't hold
                self._launch = device.record(self._enqueue)
            self._launch()
            for name, array in outputs.items():
                self._shared.held.pop(name, None)
                device.download(array, addresses[name])
            device.synchronize()
        except EngineError as error:
            raise EngineError(f"bucket {self._graph.name!r}: {error}") from error
        self._runs += 1
        return outputs

    def _enqueue(self) -> None:
        self._context.enqueue(self._shared.device.stream)


def _lasting(manifest: Manifest) -> frozenset[str]:
    """Return the names of the values that a prologue makes once for a prompt."""
    prompt = None if manifest.prologue is None else manifest.prologue.prompt
    return frozenset() if prompt is None else frozenset(info.name for info in prompt.outputs)
