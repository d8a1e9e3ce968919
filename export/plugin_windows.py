"""Windows by the plugin: ditc.window_attention(q, k, v)   becomes   ditc.kernel_attention(…).

So do ditc.arrow_attention and ditc.tile_attention. What the kernel walks along are two more inputs,
constants; everything else is an attribute of the node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import call, shape_of
from ditc.passes.pattern import KernelWindow
from ditc.passes.tile_window import TileWindow
from ditc.passes.window import Window
from ditc.passes.window_kernel import DTYPES, Shape
from ditc.passes.window_nodes import WINDOWED, read_windowed
from ditc.runtime.errors import LoweringError

from .fold_constants import add_constant
from .window_plugin import ATTRIBUTES, PLUGIN, plugin_call

__all__ = ["DOMAIN", "KERNEL_ATTENTION", "PluginWindows", "as_onnx_nodes"]

DOMAIN = "trt.plugins"
"""Of the node in ONNX; TensorRT's parser goes by the node's type and its `plugin_namespace`."""
VERSION = "1"
_SCHEMA = ", ".join(
    f"{'float' if kind is float else 'int'} {name}" for name, kind in ATTRIBUTES.items()
)
torch.library.define(
    "ditc::kernel_attention",
    f"(Tensor query, Tensor key, Tensor value, Tensor rows, Tensor runs, {_SCHEMA}) -> Tensor",
)


def _shaped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object
) -> torch.Tensor:
    del key, rest
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


torch.library.register_fake("ditc::kernel_attention", _shaped)
KERNEL_ATTENTION = torch.ops.ditc.kernel_attention.default
"""A call of the plugin as it stands in a graph; nothing computes it but TensorRT."""


@dataclass(frozen=True)
class PluginWindows(Pass):
    """Replace every window attention by a call of the plugin.

    Attributes:
        capability: of the GPU that the engine is for, as 89.
    """

    name: ClassVar[str] = "plugin-windows"
    capability: int

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace window attentions and return how many."""
        nodes = [node for node in graph.nodes if node.target in WINDOWED]
        for node in nodes:
            self._replace(graph, node)
        return len(nodes)

    def _replace(self, graph: fx.Graph, node: fx.Node) -> None:
        sources = [source for source in node.args[:3] if isinstance(source, fx.Node)]
        form, (query, _, value) = read_windowed(node), sources
        assert isinstance(form.window, Window | TileWindow)
        window: KernelWindow = form.window
        dtype = query.meta["val"].dtype
        if dtype not in DTYPES:
            raise LoweringError(f"window attention of {dtype}: the window kernel has no such one")
        shape = Shape(shape_of(query)[-2], shape_of(query)[-1], shape_of(value)[-1], dtype)
        attributes, rows, runs = plugin_call(shape, window, form.text, form.scale, self.capability)
        with graph.inserting_before(node):
            tables = [add_constant(graph, rows), add_constant(graph, runs)]
            four = [_reshaped(graph, source, _four(shape_of(source))) for source in sources]
            made = call(graph, KERNEL_ATTENTION, *four, *tables, *attributes.values())
            output = _reshaped(graph, made, shape_of(node))
        node.replace_all_uses_with(output)
        graph.erase_node(node)


def _four(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 4 else (1, -1, *shape[-2:])


def _reshaped(graph: fx.Graph, node: fx.Node, shape: Sequence[int]) -> fx.Node:
    if shape_of(node) == tuple(shape):
        return node
    return call(graph, torch.ops.aten.reshape.default, node, list(shape))


def as_onnx_nodes(module: fx.GraphModule) -> None:
    """Turn calls of the plugin into what torch's exporter makes a node of TensorRT's plugin of."""
    for node in module.graph.find_nodes(op="call_function", target=KERNEL_ATTENTION):
        node.target = _symbolic
    module.recompile()


def _symbolic(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    runs: torch.Tensor,
    *numbers: int | float,
) -> torch.Tensor:
    namespace, _, name = PLUGIN.partition("::")
    named = dict(zip(ATTRIBUTES, numbers, strict=True))
    told: dict[str, int | float | str] = {"plugin_namespace": namespace, "aot": 1}
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}",
        (query, key, value, rows, runs),
        {**told, "plugin_version": VERSION, **named},
        dtype=query.dtype,
        shape=(*query.shape[:-1], value.shape[-1]),
        version=1,
    )
