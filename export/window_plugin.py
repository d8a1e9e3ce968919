"""Window attention as a plugin of TensorRT, whose code goes into the engine.

A quickly deployable plugin with an ahead-of-time implementation: when an engine is built, TensorRT
asks for PTX and launch parameters and keeps them, so that nothing of Python, Triton or this package
is needed where the engine runs. TensorRT-RTX 1.7 has no such interface in Python.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from ditc.passes.pattern import KernelWindow, Pattern, Row, pattern_of
from ditc.passes.window_kernel import Blocks, Shape, blocks_of, tables
from ditc.runtime.errors import LoweringError

from .window_ptx import Kernel, compile_ptx

__all__ = ["PLUGIN", "find_plugins", "plugin_call", "register_window_plugin"]

PLUGIN = "ditc::window_attention"
"""Namespace and name; the plugin takes query, key, value, rows and runs."""
INPUTS = ("query", "key", "value", "rows", "runs")
ATTRIBUTES: Mapping[str, type] = {
    "scale": float,
    "tile": int,
    "reach": int,
    "origin": int,
    "queries": int,
    "keys": int,
    "warps": int,
    "stages": int,
    "capability": int,
}
DTYPES = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}


def find_plugins(library: str) -> ModuleType:
    """Return the plugin interface of a TensorRT module.

    Raises:
        LoweringError: if the library has none, or none that takes kernels compiled beforehand.
    """
    try:
        plugins = importlib.import_module(f"{library}.plugin")
    except (ImportError, OSError) as error:
        raise LoweringError(
            f"{library} takes no plugins from Python here ({error}): the window kernel needs "
            "tensorrt 10.8 or later"
        ) from error
    if not hasattr(plugins, "aot_impl"):
        raise LoweringError(
            f"{library} takes no kernels that are compiled beforehand: the window kernel needs "
            "tensorrt 10.8 or later"
        )
    return plugins


def plugin_call(
    shape: Shape, window: KernelWindow, text: tuple[int, int], scale: float, capability: int
) -> tuple[dict[str, int | float], torch.Tensor, torch.Tensor]:
    """Return what a call of the plugin takes beside query, key and value.

    Args:
        shape: of each head.
        window: over the image tokens.
        text: half-open range of text tokens at one end.
        scale: factor on query · key.
        capability: of the GPU, as 89 for compute capability 8.9.

    Returns:
        The attributes, and the constants `rows` and `runs`, int32.

    Raises:
        PlanError: if a window of tiles is for another number of image tokens.
    """
    blocks = blocks_of(shape, window)
    pattern = pattern_of(window, shape.tokens, text, blocks.queries)
    attributes: dict[str, int | float] = {
        "scale": scale,
        "tile": pattern.tile,
        "reach": pattern.reach,
        "origin": pattern.origin,
        "queries": blocks.queries,
        "keys": blocks.keys,
        "warps": blocks.warps,
        "stages": blocks.stages,
        "capability": capability,
    }
    return attributes, *tables(pattern)


def register_window_plugin(plugins: ModuleType) -> None:
    """Register the plugin with the interface that `find_plugins` returns, once a process."""

    def describe(query: Any, *others: object, **attributes: object) -> Any:
        del others, attributes
        return query.like()

    def implement(*given: Any) -> tuple[str, bytes, Any, Any]:
        named = dict(zip((*INPUTS, *ATTRIBUTES), given, strict=False))  # outputs, tactic: unread
        kernel = _kernel(named)
        launch = plugins.KernelLaunchParams()
        launch.grid_x, launch.grid_y = kernel.grid
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        return kernel.entry, kernel.ptx, launch, plugins.SymIntExprs(0)

    # TensorRT reads names and types off the functions' signatures; the types are its own.
    tensor = plugins.TensorDesc
    types = dict.fromkeys(INPUTS, tensor) | dict(ATTRIBUTES)
    made = tuple[str, bytes, plugins.KernelLaunchParams, plugins.SymIntExprs]  # type: ignore[name-defined]
    behind = {"outputs": tuple[tensor], "tactic": int}  # type: ignore[valid-type]
    plugins.register(PLUGIN)(_signed(describe, types, tensor))
    plugins.aot_impl(PLUGIN)(_signed(implement, {**types, **behind}, made))


def _signed(
    function: Callable[..., object], types: Mapping[str, object], returned: object
) -> Callable[..., object]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=types[name]) for name in types]
    signature = inspect.Signature(parameters, return_annotation=returned)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _kernel(named: Mapping[str, Any]) -> Kernel:
    batch, heads, tokens, head_dim = _sizes(named["query"])
    rows = _sizes(named["rows"])[0]
    blocks = (named[name] for name in ("queries", "keys", "warps", "stages"))
    return compile_ptx(
        Shape(tokens, head_dim, _sizes(named["value"])[3], DTYPES[named["query"].dtype.name]),
        Pattern(_placeholders(rows), named["tile"], named["reach"], named["origin"]),
        named["scale"],
        batch * heads,
        Blocks(*blocks),
        named["capability"],
    )


def _sizes(described: Any) -> tuple[int, ...]:
    return tuple(int(size.constant_value) for size in described.shape_expr)


def _placeholders(count: int) -> tuple[Row, ...]:
    """Return so many rows: what they hold is in the table, only their number is in the code."""
    return (Row(0, 0, ()),) * count
