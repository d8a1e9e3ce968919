"""Run buckets in ONNX Runtime: one session a bucket, one copy of the weights, slots in place.

On the CPU the sessions share what they can. Matrices are OrtValues over one memory map and are not
prepacked, since ONNX Runtime packs a copy for every session. One arena serves the activations of
all sessions. Threads of idle sessions sleep and don't spin.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .batches import resized
from .dtypes import BFLOAT16, ONNX_BFLOAT16, array_dtype, bits, onnx_type
from .engine import Array
from .errors import EngineError, install
from .manifest import Graph, Manifest, SlotInfo
from .ort_checks import (
    CPU,
    check_given,
    check_interface,
    check_precision,
    check_providers,
    check_threads,
)
from .weights import check_weights

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue, SessionOptions

__all__ = ["OrtBackend", "OrtEngine"]

DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}
FATAL_ONLY = 4
MATRIX = 2
"""Axes of what a projection multiplies with."""


@dataclass(frozen=True)
class OrtBackend:
    """Loads buckets into ONNX Runtime.

    Attributes:
        providers: execution providers by ONNX Runtime's names, most wanted first. Where the CPU
            isn't among them, nothing runs on it.
        threads: threads within an operator; None for as many as ONNX Runtime finds cores.
        prepack: whether each session keeps its weights a second time in the layout its kernels
            like: faster at few rows, a model's weights in memory for every bucket.
    """

    providers: Sequence[str] = (CPU,)
    threads: int | None = None
    prepack: bool = False

    def load(
        self, root: Path, manifest: Manifest, weights: Mapping[str, Array]
    ) -> dict[str, "OrtEngine"]:
        """Return a session a bucket, all bound to the same slot buffers.

        Raises:
            EngineError: if ONNX Runtime or a provider isn't installed, a provider gave way to
                another, or a graph doesn't load.
            BundleError: if a graph uses a weight that isn't in the store.
        """
        ort = _import_onnxruntime()
        check_providers(ort, self.providers)
        used = {name for bucket in manifest.graphs for name in bucket.weights}
        check_weights(manifest, weights)
        check_precision(manifest, self.providers)
        device = DEVICES.get(self.providers[0], "cpu")
        shared = {name: weights[name] for name in sorted(used) if _is_shared(weights[name])}
        values = _place_weights(ort, shared, device)
        sessions = {
            bucket.name: self._open_session(ort, root, bucket, values) for bucket in manifest.graphs
        }
        slots = _allocate_slots(ort, manifest, device)
        return {
            bucket.name: OrtEngine(
                manifest,
                bucket,
                sessions[bucket.name],
                slots,
                values,
                manifest.slots_of(bucket.name),
            )
            for bucket in manifest.graphs
        }

    def _open_session(
        self, ort: ModuleType, root: Path, bucket: Graph, values: Mapping[str, "OrtValue"]
    ) -> "InferenceSession":
        options = self._options(ort, root)
        for name in sorted(values.keys() & set(bucket.weights)):
            options.add_initializer(name, values[name])
        graph = (root / bucket.graph).read_bytes()
        try:
            session: InferenceSession = ort.InferenceSession(
                graph, options, providers=list(self.providers)
            )
        except Exception as error:
            raise EngineError(
                f"bucket {bucket.name!r}: ONNX Runtime {ort.__version__} can't load "
                f"{bucket.graph} on {', '.join(self.providers)}, of the available "
                f"{', '.join(ort.get_available_providers())}: {error}"
            ) from error
        session.disable_fallback()
        check_given(bucket, self.providers, session.get_providers())
        return session

    def _options(self, ort: ModuleType, root: Path) -> "SessionOptions":
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_ONLY  # errors come as exceptions
        if self.threads is not None:
            check_threads(self.threads)
            options.intra_op_num_threads = self.threads
        entries = {
            "session.model_external_initializers_file_folder_path": str(root),
            "session.intra_op.allow_spinning": "0",
            "session.disable_prepacking": "0" if self.prepack else "1",
        }
        if CPU not in self.providers:
            entries["session.disable_cpu_ep_fallback"] = "1"
        if tuple(self.providers) == (CPU,):
            _register_shared_arena()
            entries["session.use_env_allocators"] = "1"
            options.enable_mem_pattern = False
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return options


class OrtEngine:
    """A session with its slots bound once, as inputs where it reads and outputs where it writes.

    Attributes:
        storages: the memory of all slots of the bundle by number, the same for each of its
            engines.
    """

    def __init__(
        self,
        manifest: Manifest,
        bucket: Graph,
        session: "InferenceSession",
        storages: Mapping[int, "OrtValue"],
        weights: Mapping[str, "OrtValue"],
        slots: Mapping[str, SlotInfo],
    ) -> None:
        check_interface(manifest, bucket, session)
        self._weights = weights  # the session refers to their memory without owning it
        self._manifest = manifest
        self.storages = storages
        self._bucket = bucket
        self._session = session
        self._binding = session.io_binding()
        self._slots = {name: slot.name for name, slot in slots.items()}
        self.resize(manifest)

    def resize(self, sized: Manifest) -> None:
        """Bind slots to their storages, in the shapes of a manifest; see `Resizable.resize`."""
        graph = next(graph for graph in sized.graphs if graph.name == self._bucket.name)
        self._outputs = sized.outputs_of(graph)
        known = {slot.name: slot for slot in sized.slots}
        slots = {name: known[slot] for name, slot in self._slots.items()}
        for name, bind in (
            *((name, self._binding.bind_input) for name in graph.reads),
            *((name, self._binding.bind_output) for name in graph.writes),
        ):
            slot, memory = slots[name], self.storages[slots[name].storage]
            device = memory.device_name()
            kind = onnx_type(array_dtype(slot.dtype))
            bind(name, device, 0, kind, slot.shape, memory.data_ptr())

    def bound(self, slots: Mapping[str, str]) -> "OrtEngine":
        """Return an engine of the same session on other slots; see `Rebindable.bound`."""
        known = {slot.name: slot for slot in self._manifest.slots}
        named = {name: known[slot] for name, slot in slots.items()}
        held = (self._session, self.storages, self._weights)
        return OrtEngine(self._manifest, self._bucket, *held, named)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run one step on the caller's own input and output memory; see `Engine.run`."""
        outputs: dict[str, Array] = {
            info.name: np.empty(info.shape, array_dtype(info.dtype)) for info in self._outputs
        }
        try:
            for named, bind in (
                (arrays, self._binding.bind_input),
                (outputs, self._binding.bind_output),
            ):
                for name, array in named.items():
                    kind = onnx_type(array.dtype)
                    bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(
                f"bucket {self._bucket.name!r}: ONNX Runtime failed: {error}"
            ) from error
        return outputs


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"ONNX Runtime can't be imported ({error}): {install('ort')}, or [cuda] for NVIDIA GPUs"
        ) from error
    module: ModuleType = onnxruntime
    return module


@functools.cache
def _register_shared_arena() -> None:
    """Give the process one arena for the activations of all sessions that ask for it."""
    ort = _import_onnxruntime()
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    as_requested = 1
    ort.create_and_register_allocator(
        memory, ort.OrtArenaCfg({"arena_extend_strategy": as_requested})
    )


def _is_shared(weight: Array) -> bool:
    """Whether sessions are handed a weight, which they then all have in one place.

    The others they map from the bundle's store themselves. What is broadcast, as a table of
    angles `[1, 1, tokens, head_dim]`, ONNX Runtime may turn when it moves transposes past it: it
    turns its own copy, but goes on to compute with what it was handed.
    """
    return weight.ndim == MATRIX


def _place_weights(
    ort: ModuleType, weights: Mapping[str, Array], device: str
) -> dict[str, "OrtValue"]:
    """Return weights where the sessions compute: on a GPU one copy, on the CPU the memory map."""
    try:
        return {name: _placed(ort, array, device) for name, array in weights.items()}
    except Exception as error:
        total = sum(array.nbytes for array in weights.values())
        raise EngineError(
            f"ONNX Runtime {ort.__version__} can't put {total / 1e6:.1f} MB of weights on "
            f"{device}: {error}; end what else uses its memory"
        ) from error


def _placed(ort: ModuleType, array: Array, device: str) -> "OrtValue":
    """Return a weight as ONNX Runtime takes it; one of bfloat16 it moves to a device by itself."""
    made: OrtValue
    if array.dtype == BFLOAT16:
        made = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits(array), ONNX_BFLOAT16)
    else:
        made = ort.OrtValue.ortvalue_from_numpy(array, device, 0)
    return made


def _allocate_slots(ort: ModuleType, manifest: Manifest, device: str) -> dict[int, "OrtValue"]:
    try:
        return {
            storage: ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, device, 0)
            for storage, size in resized(manifest, manifest.batches[1]).storage_bytes.items()
        }
    except Exception as error:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} can't allocate {len(manifest.slots)} slots on "
            f"{device}: {error}"
        ) from error
