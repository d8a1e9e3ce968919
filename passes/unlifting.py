"""Turn an exported program into a module: weights are attributes, inputs the user's tensors."""

import operator
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    TensorArgument,
)

from ditc.runtime.errors import CaptureError

from .exporting import traced_line
from .unloaded import unloaded_like

__all__ = ["unlift"]

VIEW = torch.ops.aten.view.default
RESHAPE: Callable[..., object] = torch.ops.aten.reshape.default
"""In the place of a view, which asks for strides: passes keep values, not strides."""
WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""Operators that run a graph of their own in a context, and where they hold that graph."""

Value = fx.Node | tuple[fx.Node, ...]


def unlift(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """Return an exported program as a module: weights are attributes, inputs the user's tensors.

    Raises:
        CaptureError: if the program changes buffers or arguments, or returns what is no tensor.
    """
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    graph = fx.Graph()
    mapping: dict[fx.Node, Value] = {}
    weights: dict[str, torch.Tensor] = {}
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node in sorted(placeholders, key=lambda node: _is_weight(specs[node.name])):
        _copy_input(exported, graph, node, specs[node.name], mapping, weights)
    _copy_body(exported.graph_module, graph, mapping)
    (values,) = exported.graph.output_node().args
    assert isinstance(values, list | tuple)
    graph.output(_user_outputs(exported, values, mapping))
    return fx.GraphModule(weights, graph)


def _copy_body(module: fx.GraphModule, graph: fx.Graph, mapping: dict[fx.Node, Value]) -> None:
    """Copy what a graph computes behind its inputs, which are mapped already."""
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output") or _is_graph(module, node):
            continue
        if node.op == "get_attr" and isinstance(getattr(module, str(node.target)), torch.Tensor):
            raise CaptureError(f"constant {node.target} isn't lifted: keep it as a buffer")
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            mapping[node] = _inline(module, graph, node, mapping)
        elif isinstance(taken := _from_tuple(node, mapping), fx.Node):
            mapping[node] = taken
        elif node.op == "call_function":
            mapping[node] = copied = graph.node_copy(node, lambda arg: _single(mapping[arg]))
            if node.target is VIEW:
                copied.target = RESHAPE
        else:
            raise CaptureError(f"node {node.name}: {node.op} has no counterpart at inference")


def _from_tuple(node: fx.Node, mapping: Mapping[fx.Node, Value]) -> fx.Node | None:
    """Return what a node takes of the values that an inlined graph returns."""
    if node.target is not operator.getitem:
        return None
    source, index = node.args
    values = mapping.get(source) if isinstance(source, fx.Node) else None
    return values[index] if isinstance(values, tuple) and isinstance(index, int) else None


def _is_graph(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "get_attr":
        return False
    return isinstance(getattr(module, str(node.target), None), fx.GraphModule)


def _inline(
    module: fx.GraphModule, graph: fx.Graph, node: fx.Node, mapping: Mapping[fx.Node, Value]
) -> tuple[fx.Node, ...]:
    """Copy the graph that a wrapper runs; at inference its context doesn't matter.

    Raises:
        CaptureError: naming the operator and the model's line, if it is no such wrapper.
    """
    name = str(node.target)
    if name not in WRAPPERS:
        where = _line_near(node)
        raise CaptureError(f"{name} runs a program of its own, which no engine has{where}")
    position = WRAPPERS[name]
    if position == 4 and node.args[2] and node.args[0] in _devices(node):
        raise CaptureError(f"autocast is on{_line_near(node)}: capture a model of one precision")
    held = node.args[position]
    assert isinstance(held, fx.Node)
    body = getattr(module, str(held.target))
    inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
    inner: dict[fx.Node, Value] = {}
    for entry, given in zip(inputs, node.args[position + 1 :], strict=True):
        assert isinstance(given, fx.Node)
        inner[entry] = mapping[given]
    _copy_body(body, graph, inner)
    (values,) = body.graph.output_node().args
    return tuple(_single(inner[value]) for value in values)


def _devices(node: fx.Node) -> set[str]:
    values = (source.meta.get("val") for source in node.all_input_nodes)
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


def _line_near(node: fx.Node) -> str:
    """Return the model's line of a node, or of the nearest before it that has one."""
    at: fx.Node = node
    while at.op != "root":
        where = traced_line(at.meta.get("stack_trace"))
        if where:
            return where
        at = at.prev
    return ""


def _single(value: Value) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _is_weight(spec: InputSpec) -> bool:
    """Inputs are copied first, so that they keep their names where a weight has the same one."""
    return spec.kind is not InputKind.USER_INPUT


def _copy_input(
    exported: torch.export.ExportedProgram,
    graph: fx.Graph,
    node: fx.Node,
    spec: InputSpec,
    mapping: dict[fx.Node, Value],
    weights: dict[str, torch.Tensor],
) -> None:
    if spec.kind is InputKind.USER_INPUT:
        if isinstance(spec.arg, TensorArgument):
            mapping[node] = graph.node_copy(node)
        elif not isinstance(spec.arg, ConstantArgument) or node.users:
            raise CaptureError(f"argument {node.name} is used but is no tensor: fix its value")
        return
    target = spec.target
    assert target is not None
    source = exported.state_dict if target in exported.state_dict else exported.constants
    value = source[target]
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"constant {target} is {type(value).__name__}, expected a tensor")
    weights[target] = unloaded_like(value) if isinstance(value, FakeTensor) else value
    mapping[node] = copied = graph.get_attr(target)
    copied.meta = dict(node.meta)


def _user_outputs(
    exported: torch.export.ExportedProgram,
    values: Iterable[object],
    mapping: Mapping[fx.Node, Value],
) -> tuple[fx.Node, ...]:
    outputs = []
    for spec, value in zip(exported.graph_signature.output_specs, values, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the module changes {spec.target} while it runs ({spec.kind.name.lower()}): a "
                "denoiser has to leave its buffers and arguments alone"
            )
        if not isinstance(value, fx.Node):
            raise CaptureError(f"output {value!r} is no tensor: return tensors only")
        outputs.append(_single(mapping[value]))
    return tuple(outputs)
