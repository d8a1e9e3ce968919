"""Which library builds a target's engines: what is installed, and what it builds for."""

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ditc.runtime.cuda import gpu_at_hand
from ditc.runtime.errors import EngineError, LoweringError, install
from ditc.runtime.targets import EXTRAS, Target

from .window_plugin import find_plugins

__all__ = ["Library", "find_library", "find_window_kernel"]

TORCH = "torch-tensorrt"
FLAVOURS = {"torch-tensorrt-rtx": "tensorrt_rtx", "torch-tensorrt": "tensorrt"}
"""Distributions that hold the module `torch_tensorrt`, and what each builds with."""


@dataclass(frozen=True)
class Library:
    """What builds engines, and for which GPUs.

    Attributes:
        module: name of the Python module.
        version: as it says itself.
        capabilities: of the GPUs to build for, as `sm89`.
        refit: whether weights that a built engine holds can be replaced.
        torch: distribution and version of the Torch-TensorRT that makes its networks; empty where
            its own parser makes them, of ONNX.
        gpu: what the GPU at hand is called, where engines are built on it and for it; else empty.
    """

    module: str
    version: str
    capabilities: tuple[str, ...]
    refit: bool = False
    torch: str = ""
    gpu: str = ""


def find_library(target: Target, refit: bool = False) -> Library:
    """Return the library that builds a target's engines.

    Args:
        target: names it.
        refit: whether its engines are to hold weights that can be replaced. TensorRT's own can;
            those of Torch-TensorRT's networks don't keep their names, and TensorRT-RTX compiles
            such engines with a GPU alone.

    Raises:
        LoweringError: if it isn't installed, can't be imported, or doesn't build for a GPU that
            the target names.
    """
    name, frontend = (target.libraries[0], "") if target.name != TORCH else _flavour(target)
    refit = refit and name == "tensorrt" and not frontend
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise LoweringError(
            f"target {target.name} needs {name}, which can't be imported ({error}): "
            f"{install(EXTRAS[name])}"
        ) from error
    if name == "tensorrt_rtx" and not target.capabilities:
        raise LoweringError(
            f"target {target.name}: name the GPUs to build for, of {_listed(module)}, as "
            f"{target.name}:sm89,sm120"
        )
    _check_capabilities(target, name, module)
    number = str(module.__version__)
    if name != "tensorrt":
        return Library(name, number, target.capabilities, refit, frontend)
    try:
        gpu, capability = gpu_at_hand()
    except EngineError as error:
        raise LoweringError(
            f"target {target}: {name} {number} builds on the GPU at hand, and {error}"
        ) from error
    return Library(name, number, (capability,), refit, frontend, gpu)


def find_window_kernel(target: Target, library: Library | None) -> int:
    """Return the compute capability, as 89, to compile the window kernel for.

    Args:
        target: of the bundle.
        library: that builds its engines, None if it has none.

    Raises:
        LoweringError: if the target's engines take no such plugin.
    """
    if library is None or library.torch:
        raise LoweringError(
            f"target {target}: the window kernel is a plugin of TensorRT: compile with target "
            "'tensorrt', or without window_kernel for windows as blocks"
        )
    try:
        find_plugins(library.module)
    except LoweringError as error:
        raise LoweringError(
            f"target {target}: {error}; or compile without window_kernel for windows as blocks"
        ) from error
    if find_spec("triton") is None:
        raise LoweringError(f"the window kernel needs Triton: {install('triton')}")
    return int(library.capabilities[0].removeprefix("sm"))


def _check_capabilities(target: Target, name: str, module: object) -> None:
    if name == "tensorrt" and target.capabilities:
        raise LoweringError(
            f"target {target}: the Torch-TensorRT that is installed builds with tensorrt, for the "
            f"GPU at hand: give {target.name!r}, or install torch-tensorrt-rtx in its place"
        )
    known = _known(module)
    for entry in target.capabilities:
        if entry not in known:
            version_of = getattr(module, "__version__", "")
            raise LoweringError(
                f"target {target}: {name} {version_of} doesn't build for {entry}, only for "
                f"{_listed(module)}"
            )


def _flavour(target: Target) -> tuple[str, str]:
    """Return what the installed Torch-TensorRT builds with, and its own name and version.

    Not imported here: it wants a GPU at once, and engines are built in other processes.
    """
    found = {dist: number for dist in FLAVOURS if (number := _version(dist))}
    if not found or find_spec("torch_tensorrt") is None:
        raise LoweringError(
            f"target {target} needs Torch-TensorRT, which isn't installed: "
            f"{install('tensorrt')} for the GPU at hand, or pip install torch-tensorrt-rtx of "
            f"torch {_short(torch.__version__)} to build for others"
        )
    here = torch.__version__
    if torch.version.cuda is None:
        raise LoweringError(
            f"target {target}: Torch-TensorRT needs a torch that was built for CUDA, and torch "
            f"{here} wasn't: pip install 'torch==={_short(here)}', which is"
        )
    dist, number = next(iter(found.items()))
    if _minor(number) != _minor(here):
        raise LoweringError(
            f"target {target}: {dist} {number} is for torch {_minor(number)}, and torch {here} is "
            f"installed: pip install '{dist}=={_minor(here)}.*'"
        )
    return FLAVOURS[dist], f"{dist} {number}"


def _version(dist: str) -> str:
    try:
        return version(dist)
    except PackageNotFoundError:
        return ""


def _short(text: str) -> str:
    return text.partition("+")[0]


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])


def _known(module: object) -> list[str]:
    members = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    return [name.lower() for name in members if name.startswith("SM")]


def _listed(module: object) -> str:
    return ", ".join(_known(module)) or "the GPU at hand"
