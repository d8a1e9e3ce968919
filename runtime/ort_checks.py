"""What is checked before and after a bundle is loaded into ONNX Runtime."""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from .errors import BundleError, EngineError, install
from .manifest import Graph, Manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = [
    "CPU",
    "check_given",
    "check_interface",
    "check_precision",
    "check_providers",
    "check_threads",
]

CPU = "CPUExecutionProvider"
EXTRAS = {
    CPU: "ort",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
}
MAX_THREADS = 4096


def check_providers(ort: ModuleType, providers: Sequence[str]) -> None:
    """Refuse providers that this build of ONNX Runtime lacks."""
    available = ort.get_available_providers()
    if not providers:
        raise EngineError(f"no provider was given, expected some of {', '.join(available)}")
    for provider in providers:
        if provider not in available:
            extra = EXTRAS.get(provider)
            way = install(extra) if extra else "install a build that has it"
            raise EngineError(
                f"the provider {provider!r} isn't in this ONNX Runtime {ort.__version__}, which "
                f"has {', '.join(available)}; {way}"
            )


def check_precision(manifest: Manifest, providers: Sequence[str]) -> None:
    """Refuse a precision that a provider has no kernels for."""
    if manifest.precision == "bf16" and CPU in providers:
        raise EngineError(
            f"the bundle is of precision 'bf16', for which ONNX Runtime has no kernels on {CPU!r}: "
            "compile with precision 'fp16' or 'fp32', or ask for a GPU's provider alone"
        )


def check_threads(threads: int) -> None:
    """Refuse what is no number of threads."""
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads is {threads}, expected an integer from 1 to {MAX_THREADS}")


def check_given(bucket: Graph, asked: Sequence[str], given: Sequence[str]) -> None:
    """Refuse a session that gave way to another provider."""
    for provider in asked:
        if provider not in given:
            raise EngineError(
                f"bucket {bucket.name!r}: asked for {provider!r}, ONNX Runtime gave "
                f"{', '.join(given)}; check the provider's driver and libraries, or ask for {CPU!r}"
            )


def check_interface(manifest: Manifest, bucket: Graph, session: "InferenceSession") -> None:
    """Refuse a graph whose inputs or outputs aren't those that the manifest says."""
    outputs = [info.name for info in manifest.outputs_of(bucket)]
    for what, found, expected in (
        ("inputs", session.get_inputs(), {*bucket.inputs, *bucket.reads}),
        ("outputs", session.get_outputs(), {*outputs, *bucket.writes}),
    ):
        names = {argument.name for argument in found}
        if names != expected:
            raise BundleError(
                f"bucket {bucket.name!r}: {bucket.graph} has the {what} {sorted(names)}, "
                f"expected {sorted(expected)}; compile the bundle again"
            )
