"""A CUDA GPU through its driver's own library: memory, copies, one stream, graphs of work.

The driver's library is there wherever a GPU is, so that nothing has to be installed for this.
"""

import ctypes
import sys
from collections.abc import Callable
from typing import Protocol

from .engine import Array
from .errors import EngineError

__all__ = ["CudaDevice", "Device", "gpu_at_hand", "open_device"]

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…`."""
NO_DEVICE, OUT_OF_MEMORY = 100, 2
NON_BLOCKING, THREAD_LOCAL = 1, 1
"""`CU_STREAM_NON_BLOCKING` and `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`."""


class Device(Protocol):
    """A GPU with one stream, on which everything happens in order."""

    @property
    def name(self) -> str:
        """What its maker calls it."""
        ...

    @property
    def capability(self) -> str:
        """Its compute capability, as `sm89`."""
        ...

    @property
    def driver(self) -> tuple[int, int]:
        """The latest CUDA that its driver takes, major and minor."""
        ...

    @property
    def stream(self) -> int:
        """The stream's handle."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes of its memory that are in use, by whomever."""
        ...

    def allocate(self, nbytes: int, what: str) -> int:
        """Return the address of fresh memory, aligned to 256 bytes.

        Raises:
            EngineError: if there isn't so much left; the message says what for.
        """
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy an array, C-contiguous, to the device; it may be dropped after `synchronize`."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into an array, C-contiguous; it's there after `synchronize`."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what work puts on the stream, and return what launches it as one graph."""
        ...


class CudaDevice:
    """A GPU of this machine; see `Device`.

    Args:
        library: the driver's library, loaded.
        index: which GPU.

    Raises:
        EngineError: if there is no such GPU.
    """

    def __init__(self, library: ctypes.CDLL, index: int = 0) -> None:
        self._library = library
        self._find(index)
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(self._stream), NON_BLOCKING)

    def _find(self, index: int) -> None:
        code = self._library.cuInit(0)
        count = ctypes.c_int(0)
        if code == 0:
            self._call("cuDeviceGetCount", ctypes.byref(count))
        if code == NO_DEVICE or (code == 0 and index >= count.value):
            raise EngineError(
                f"there is no GPU {index} here, the driver sees {count.value}; run the bundle on a "
                "machine with one, or compile it with target='onnx' for the CPU"
            )
        self._check(code, "cuInit")
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), index)

    @classmethod
    def described(cls, library: ctypes.CDLL, index: int = 0) -> tuple[str, str]:
        """Return a GPU's name and compute capability; nothing is started on it.

        Raises:
            EngineError: if there is no such GPU.
        """
        device = cls.__new__(cls)
        device._library = library
        device._find(index)
        return device.name, device.capability

    @property
    def name(self) -> str:
        """What its maker calls it."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, 256, self._device)
        return text.value.decode(errors="replace")

    @property
    def capability(self) -> str:
        """Its compute capability."""
        found = (ctypes.c_int(), ctypes.c_int())
        for value, attribute in zip(found, (MAJOR, MINOR), strict=True):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
        return f"sm{found[0].value}{found[1].value}"

    @property
    def driver(self) -> tuple[int, int]:
        """The latest CUDA that its driver takes."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return version.value // 1000, version.value % 1000 // 10

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._stream.value or 0

    @property
    def used_bytes(self) -> int:
        """Bytes of its memory that are in use."""
        free, total = self._memory()
        return total - free

    def allocate(self, nbytes: int, what: str) -> int:
        """Return the address of fresh memory."""
        address = ctypes.c_uint64()
        code = self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        if code == OUT_OF_MEMORY:
            free, total = self._memory()
            raise EngineError(
                f"{self.name} has no room for {nbytes / 1e6:.1f} MB of {what}: {free / 1e6:.1f} of "
                f"{total / 1e6:.1f} MB are free; end what else uses it, or compile for smaller "
                "batches or with --max-slot-bytes"
            )
        self._check(code, "cuMemAlloc")
        return address.value

    def upload(self, address: int, array: Array) -> None:
        """Copy an array to the device."""
        source = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        place = ctypes.c_uint64(address)
        self._call("cuMemcpyHtoDAsync_v2", place, source, size, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into an array."""
        target = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        place = ctypes.c_uint64(address)
        self._call("cuMemcpyDtoHAsync_v2", target, place, size, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self._call("cuStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work as a graph and return what launches it."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, THREAD_LOCAL)
        try:
            work()
        finally:
            code = self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        self._check(code, "cuStreamEndCapture")
        none = ctypes.c_ulonglong(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, none)
        self._call("cuGraphDestroy", graph)
        return lambda: self._call("cuGraphLaunch", made, self._stream)

    def _memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _call(self, name: str, *arguments: object) -> None:
        self._check(getattr(self._library, name)(*arguments), name)

    def _check(self, code: int, name: str) -> None:
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        told = (text.value or b"unknown").decode(errors="replace")
        raise EngineError(f"{name} failed with CUDA error {code}: {told}; check the GPU's driver")


def open_device(index: int = 0) -> CudaDevice:
    """Return a GPU of this machine.

    Raises:
        EngineError: if there is no driver, or no such GPU.
    """
    return CudaDevice(_driver(), index)


def gpu_at_hand() -> tuple[str, str]:
    """Return name and compute capability of this machine's first GPU.

    Raises:
        EngineError: if there is no driver, or no GPU.
    """
    return CudaDevice.described(_driver())


def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise EngineError(
            f"there is no NVIDIA driver here ({error}): install one, or compile the bundle with "
            "target='onnx' for the CPU"
        ) from error
