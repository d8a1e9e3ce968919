"""An engine that TensorRT-RTX or TensorRT loaded: its tensors, their shapes, its context."""

import math
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import BundleError, EngineError
from .manifest import Graph, Manifest, PartInfo

if TYPE_CHECKING:
    from .rtx_library import Library

__all__ = ["DTYPES", "Context", "Loaded"]

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""Of the library's data types, by their names."""
SIZES = {name: int(re.sub(r"\D", "", name) or 8) // 8 for name in DTYPES.values()}
"""Bytes of each; a `bool` takes one."""
ANY_SIZE = -1
"""How the library tells of an axis that isn't of one size."""
_INPUT, _OUTPUT = "input", "output"


class Loaded:
    """An engine that a library loaded, and its context."""

    def __init__(self, library: "Library", trt: ModuleType, engine: object, graph: Graph) -> None:
        self._library, self.trt, self._graph = library, trt, graph
        self._engine: Any = engine

    @property
    def scratch_bytes(self) -> int:
        """Bytes it needs for activations while it runs."""
        return int(self._engine.device_memory_size_v2)

    @property
    def ranged(self) -> frozenset[str]:
        """Inputs that may be of several sizes, by name."""
        return frozenset(
            name
            for name in self._names
            if self._mode(name) == _INPUT and ANY_SIZE in self._kind(name)[0]
        )

    def value_bytes(self, largest: Manifest) -> dict[str, int]:
        """Return the bytes of each input and output by name, weights and slots aside.

        Args:
            largest: the manifest at the most samples that the bundle serves.
        """
        held = {*self._graph.weights, *self._graph.reads, *self._graph.writes}
        given = {info.name: info.shape for info in largest.outputs_of(self._graph)}
        found = {}
        for name in self._names:
            shape, dtype = self._kind(name)
            if name in self.ranged:
                shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[-1])
            if name not in held:
                found[name] = math.prod(given.get(name, shape)) * SIZES[dtype]
        return found

    def check(self, manifest: Manifest) -> None:
        """Check that the engine takes and gives what the manifest says.

        Raises:
            BundleError: if it doesn't.
        """
        expected = dict.fromkeys((*self._graph.inputs, *self._graph.reads), _INPUT)
        expected |= dict.fromkeys(self._graph.weights, _INPUT)
        outputs = [info.name for info in manifest.outputs_of(self._graph)]
        expected |= dict.fromkeys((*outputs, *self._graph.writes), _OUTPUT)
        found = {name: self._mode(name) for name in self._names}
        if found != expected:
            strange = sorted(set(found.items()) ^ set(expected.items()))
            raise self._unlike(f"{strange[0][1]} {strange[0][0]!r}", "expected on one side alone")
        kinds = {i.name: (i.shape, i.dtype) for i in manifest.inputs if not self._before_steps}
        kinds |= {n: (i.shape, i.dtype) for n, i in manifest.slots_of(self._graph.name).items()}
        kinds |= {i.name: (i.shape, i.dtype) for i in manifest.outputs_of(self._graph)}
        for name in found.keys() & kinds.keys():
            if not self._fits(name, kinds[name], manifest.dynamic is not None):
                (shape, dtype), (known, wanted) = self._kind(name), kinds[name]
                told = f"is {dtype} {list(shape)}, expected {wanted} {list(known)}"
                raise self._unlike(repr(name), told)

    def context(self, addresses: Mapping[str, int], scratch: tuple[int, int]) -> "Context":
        """Return a context on shared scratch that knows where every tensor lies.

        Args:
            addresses: by the tensor's name in the graph.
            scratch: address and bytes.

        Raises:
            EngineError: if the library makes no context, as for want of memory.
        """
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(
                f"bucket {self._graph.name!r}: {self._library.named} makes no context: "
                f"{self._library.reason()}"
            )
        context.set_device_memory(*scratch)
        for name in self._names:
            context.set_tensor_address(name, addresses[name])
        return Context(self, self._library, context)

    @property
    def _before_steps(self) -> bool:
        """Whether it is of a prologue, which may take a timestep for every step at once."""
        return isinstance(self._graph, PartInfo)

    @property
    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]

    def _mode(self, name: str) -> str:
        inward = self._engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
        return _INPUT if inward else _OUTPUT

    def _kind(self, name: str) -> tuple[tuple[int, ...], str]:
        dtype = self._engine.get_tensor_dtype(name).name
        return tuple(self._engine.get_tensor_shape(name)), DTYPES.get(dtype, dtype)

    def _fits(self, name: str, wanted: tuple[tuple[int, ...], str], ranged: bool) -> bool:
        (shape, dtype), (known, kind) = self._kind(name), wanted
        return (
            dtype == kind
            and len(shape) == len(known)
            and all(a == b or (ranged and a == ANY_SIZE) for a, b in zip(shape, known, strict=True))
        )

    def _unlike(self, what: str, how: str) -> BundleError:
        return BundleError(
            f"bucket {self._graph.name!r}: {self._graph.graph} doesn't fit the manifest: {what} "
            f"{how}; compile the bundle again"
        )


class Context:
    """An engine's execution context, everything bound."""

    def __init__(self, loaded: Loaded, library: "Library", context: object) -> None:
        self._loaded = loaded  # the context refers to its engine without owning it
        self._library = library
        self._context: Any = context

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Tell the shape of an input that may be of several sizes.

        Raises:
            EngineError: if the engine doesn't serve it.
        """
        if not self._context.set_input_shape(name, shape):
            raise EngineError(
                f"the engine takes no {name!r} of {list(shape)}: {self._library.reason()}"
            )

    def enqueue(self, stream: int) -> None:
        """Put one run on a stream.

        Raises:
            EngineError: if the library refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"the engine failed: {self._library.reason()}")
