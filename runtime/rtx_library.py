"""TensorRT-RTX or TensorRT as a library: what it must be, and how it loads engines."""

import importlib
import lzma
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

from .cuda import Device
from .engine_info import EngineInfo
from .errors import BundleError, EngineError, install
from .manifest import Graph
from .rtx_engine import Loaded
from .targets import EXTRAS

__all__ = ["Library", "installed"]

MAJORS = range(11, 20)
"""Of CUDA, after which the library's packages are named."""


class Library:
    """The library that built a bundle's engines.

    Args:
        info: what the manifest says of them.
        module: the Python module, imported if None; kept as `trt`.

    Raises:
        EngineError: if it can't be imported, or is too old for the engines.
    """

    def __init__(self, info: EngineInfo, module: ModuleType | None = None) -> None:
        self.info = info
        self.trt = module or _import(info)
        self._check_version()
        self._errors: list[str] = []
        self.logger = self._make_logger()
        self._runtime: Any = None

    def check_device(self, device: Device) -> None:
        """Refuse a GPU that the engines weren't built for, or a driver too old for the library.

        Raises:
            EngineError: if it is one.
        """
        major = _cuda_major(self.info.library)
        if major is not None and device.driver < (major, 0):
            found = ".".join(str(part) for part in device.driver)
            raise EngineError(
                f"the driver of {device.name} takes CUDA {found}, {self.named} needs CUDA "
                f"{major}: update the driver"
            )
        wanted = self.info.capabilities
        if wanted and device.capability not in wanted:
            raise EngineError(
                f"the bundle's engines are for {', '.join(wanted)}, and {device.name} is "
                f"{device.capability}: compile it with target='tensorrt-rtx:{device.capability}'"
            )

    def load(self, root: Path, graph: Graph) -> Loaded:
        """Return a graph's engine.

        Raises:
            EngineError: if the library refuses it.
            BundleError: if its file is damaged.
        """
        return Loaded(self, self.trt, self.open(root / graph.graph, graph.name), graph)

    def open(self, path: Path, name: str) -> Any:
        """Return the library's own engine of a file; errors as of `load`, told of by a name."""
        raw = path.read_bytes()
        if self.info.compression is not None:
            try:
                raw = lzma.decompress(raw)
            except lzma.LZMAError as error:
                raise BundleError(
                    f"{path}: can't be decompressed ({error}); compile it again"
                ) from error
        if self._runtime is None:
            self._runtime = self.trt.Runtime(self.logger)
        engine = self._runtime.deserialize_cuda_engine(raw)
        if engine is None:
            raise EngineError(
                f"bucket {name!r}: {self.named} can't load {path.name}: {self.reason()}"
            )
        return engine

    def reason(self) -> str:
        """Return what the library logged last."""
        return self._errors[-1] if self._errors else "it gave no reason"

    @property
    def named(self) -> str:
        """Name and version."""
        return f"{self.info.library} {self.trt.__version__}"

    def _check_version(self) -> None:
        """Engines run in the version that built them and, of RTX, in later ones of its major."""
        built, here = _numbers(self.info.version), _numbers(self.trt.__version__)
        same = built[:3] == here[:3]
        later = self.info.library == "tensorrt_rtx" and built[0] == here[0] and built <= here
        if not same and not later:
            raise EngineError(
                f"the bundle's engines were built by {self.info.library} {self.info.version}, and "
                f"{self.trt.__version__} is installed: install that version, or compile the "
                "bundle again with this one"
            )

    def _make_logger(self) -> object:
        trt, errors = self.trt, self._errors

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: object, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    errors.append(" ".join(message.split()))

        return Log()


def _import(info: EngineInfo) -> ModuleType:
    try:
        return importlib.import_module(info.library)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"the bundle's engines need {info.library} {info.version}, which can't be imported "
            f"({error}): {install(EXTRAS[info.library])}"
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _cuda_major(library: str) -> int | None:
    """Return the CUDA that an installed library is built on, as its packages are named after it."""
    names = {major: f"{library}_cu{major}_libs" for major in reversed(MAJORS)}
    return next((major for major, name in names.items() if installed(name)), None)


def installed(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
