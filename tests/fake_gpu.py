"""A GPU in host memory, and a TensorRT whose plans are ONNX graphs that ONNX Runtime computes.

All that lies between a bundle and the library runs as it is: addresses, copies, contexts, scratch.
"""

import ctypes
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ditc.export.generalising import input_shapes
from ditc.export.weight_inputs import with_weight_inputs
from ditc.runtime.engine import Array
from ditc.runtime.engine_info import EngineInfo
from ditc.runtime.errors import EngineError
from ditc.runtime.manifest import MANIFEST_FILE, FileInfo, Manifest
from ditc.runtime.prologue import PrologueInfo

from .bundles import info_of

STREAM = 4711
MOST_SAMPLES = 5
"""That engines of several sizes serve."""
NAMES = {1: "FLOAT", 10: "HALF", 7: "INT64", 6: "INT32", 9: "BOOL"}
DTYPES = {1: np.float32, 10: np.float16, 7: np.int64, 6: np.int32, 9: np.bool_}
INFO = EngineInfo("tensorrt_rtx", "1.7.1.116", ("sm89", "sm120"), "inputs", "xz")


@dataclass
class FakeDevice:
    """Host memory behind the seam of a GPU."""

    name: str = "Fake GPU"
    capability: str = "sm89"
    driver: tuple[int, int] = (13, 1)
    room: int = 10**9
    stream: int = STREAM
    allocated: dict[str, int] = field(default_factory=dict)
    uploads: list[tuple[int, int]] = field(default_factory=list)
    launches: int = 0

    def __post_init__(self) -> None:
        self._memory: list[Array] = []
        self._recording: list[Callable[[], None]] | None = None

    @property
    def used_bytes(self) -> int:
        return sum(self.allocated.values())

    def allocate(self, nbytes: int, what: str) -> int:
        if self.used_bytes + nbytes > self.room:
            raise EngineError(f"{self.name} has no room for {nbytes} bytes of {what}")
        self.allocated[what] = self.allocated.get(what, 0) + nbytes
        self._memory.append(np.full(nbytes + 256, 0x7F, np.uint8))
        return -(-self._memory[-1].ctypes.data // 256) * 256

    def upload(self, address: int, array: Array) -> None:
        self.uploads.append((address, array.nbytes))
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None: ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self._recording = []
        work()
        recorded, self._recording = self._recording, None

        def launch() -> None:
            self.launches += 1
            for entry in recorded:
                entry()

        return launch

    def put(self, work: Callable[[], None]) -> None:
        """Do work, or note it while a graph is recorded."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)


class FakeEngine:
    """An ONNX graph as an engine."""

    def __init__(self, raw: bytes, device: FakeDevice, scratch: int) -> None:
        self.raw, self.halves = raw, 2
        model = onnx.ModelProto.FromString(raw)
        self.device, self.device_memory_size_v2 = device, scratch
        self.session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: entry for entry in model.graph.input}
        self.outputs = {entry.name: entry for entry in model.graph.output}
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.tensors)
        self.contexts: list[FakeContext | None] = []

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes = self.tensors[name].type.tensor_type.shape.dim
        return tuple(-1 if axis.dim_param else axis.dim_value for axis in axes)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        assert profile == 0
        assert name in self.inputs
        return tuple(
            input_shapes(self.raw, self.halves, count)[name] for count in (1, 2, MOST_SAMPLES)
        )

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=NAMES[self.tensors[name].type.tensor_type.elem_type])

    def create_execution_context(self, strategy: str) -> "FakeContext":
        assert strategy == "USER_MANAGED"
        return FakeContext(self)


class FakeContext:
    """Computes on the memory that it is told of, and nowhere else."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses = engine, {}
        self.scratch: tuple[int, int] | None = None
        self.shapes = {name: engine.get_tensor_shape(name) for name in engine.tensors}

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert nbytes >= self.engine.device_memory_size_v2
        self.scratch = (address, nbytes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        assert self.scratch is not None
        self.engine.device.put(self._compute)
        return True

    def _compute(self) -> None:
        given = {name: self._view(name, self.shapes[name]).copy() for name in self.engine.inputs}
        names = list(self.engine.outputs)
        for name, value in zip(names, self.engine.session.run(names, given), strict=True):
            self._view(name, value.shape)[...] = value

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        kind = self.engine.tensors[name].type.tensor_type
        dtype = np.dtype(DTYPES[kind.elem_type])
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


def fake_tensorrt(device: FakeDevice, version: str = "1.7.1.116") -> ModuleType:
    """Return a module that is a TensorRT to whoever loads engines with it."""
    made = ModuleType("tensorrt_rtx")
    engines: list[FakeEngine] = []

    class Logger:
        ERROR, INTERNAL_ERROR, WARNING = "ERROR", "INTERNAL_ERROR", "WARNING"

        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, raw: bytes) -> FakeEngine | None:
            try:
                engines.append(FakeEngine(raw, device, 1000 * (len(engines) + 1)))
            except Exception:
                self.logger.log(Logger.WARNING, "never mind")
                self.logger.log(Logger.ERROR, "magic tag\n doesn't match")
                return None
            return engines[-1]

    vars(made).update(
        __version__=version,
        ILogger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        engines=engines,
    )
    return made


def engine_bundle(source: Path, place: Path, info: EngineInfo = INFO) -> Path:
    """Write a bundle of ONNX graphs as one of engines, for the fake library."""
    manifest = Manifest.from_json((source / MANIFEST_FILE).read_text())
    place.mkdir(parents=True)
    files: dict[str, FileInfo] = {}
    for name in manifest.files:
        raw, kept = (source / name).read_bytes(), name
        if name.endswith(".onnx"):
            raw, kept = lzma.compress(with_weight_inputs(raw)), name.replace(".onnx", ".engine")
        (place / kept).write_bytes(raw)
        files[kept] = info_of(place / kept)
    prologue = manifest.prologue
    if prologue is not None:
        parts = (prologue.prompt, prologue.step, prologue.all_steps)
        renamed = (None if part is None else _renamed(part) for part in parts)
        prologue = PrologueInfo(*renamed, prologue.weight_bytes, prologue.multiply_adds)
    made = replace(
        manifest,
        target="tensorrt-rtx",
        engine=info,
        files=files,
        prologue=prologue,
        buckets=tuple(_renamed(bucket) for bucket in manifest.buckets),
    )
    (place / MANIFEST_FILE).write_text(made.to_json())
    return place


def _renamed(graph: Any) -> Any:
    return replace(graph, graph=graph.graph.replace(".onnx", ".engine"))
