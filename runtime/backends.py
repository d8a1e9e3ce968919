"""Which backend runs a bundle: the one that its target names, and no other in its place."""

from collections.abc import Sequence

from .engine import Backend
from .errors import BundleError, EngineError
from .manifest import Manifest
from .ort import OrtBackend
from .ort_checks import CPU
from .rtx import TensorRtBackend

__all__ = ["backend_of"]


def backend_of(
    manifest: Manifest,
    providers: Sequence[str] | None,
    threads: int | None,
    prepack: bool | None,
    cuda_graphs: bool,
) -> Backend:
    """Return what runs a bundle's graphs; arguments as of `Bundle.open`.

    Raises:
        BundleError: if this version runs no such target.
        EngineError: if an option is of another target.
    """
    if manifest.engine is not None:
        asked = {"providers": providers, "threads": threads, "prepack": prepack}
        for name, value in asked.items():
            if value:
                raise EngineError(
                    f"{name} {value!r} is ONNX Runtime's, and the bundle's target is "
                    f"{manifest.target!r}: leave it out, or compile with target='onnx'"
                )
        return TensorRtBackend(cuda_graphs)
    if manifest.target != "onnx":
        raise BundleError(
            f"the bundle's target is {manifest.target!r}, and this ditc runs 'onnx'; "
            "compile with target='onnx' or give a backend"
        )
    if cuda_graphs:
        raise EngineError(
            "CUDA graphs are of TensorRT's engines, and the bundle's target is 'onnx': leave them "
            "out, or compile with target='tensorrt-rtx:…'"
        )
    return OrtBackend(providers or (CPU,), threads, bool(prepack))
