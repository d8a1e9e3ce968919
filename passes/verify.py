"""The verifier: what must hold of a graph after every pass."""

import operator

import torch
from torch import fx

from ditc.runtime.errors import PassError, first_line

from .graphs import SLOT, flat_outputs, infer, shape_of, weight

__all__ = ["verify", "verify_values"]


def verify(module: fx.GraphModule) -> None:
    """Check a graph's structure.

    Every node comes before its users and has a value; operators are aten's or ditc's; inputs
    come first, slots behind the others; outputs are tensors; no slot is looked up twice; weights
    exist.

    Raises:
        PassError: naming the node at fault.
    """
    graph = module.graph
    try:
        graph.lint()
    except RuntimeError as error:
        raise PassError(first_line(error)) from error
    for node in graph.nodes:
        _check_node(module, node)
    _check_inputs(graph)
    for node in flat_outputs(graph):
        shape_of(node)


def verify_values(module: fx.GraphModule) -> None:
    """Infer every value anew and check that it is the recorded one.

    Raises:
        PassError: naming the first node whose shape or dtype is not what the graph says.
    """
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        recorded = _signature(node.meta["val"])
        infer([node])
        found = _signature(node.meta["val"])
        if found != recorded:
            raise PassError(f"node {node.name} is recorded as {recorded}, but computes {found}")


def _check_node(module: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "output":
        return
    if node.op not in ("placeholder", "get_attr", "call_function"):
        raise PassError(f"node {node.name}: a {node.op} doesn't belong in a captured graph")
    if "val" not in node.meta:
        raise PassError(f"node {node.name} has no value")
    if node.op == "call_function" and not _known(node.target):
        raise PassError(f"node {node.name}: {node.target} is no aten or ditc operator")
    if node.op == "get_attr":
        _check_weight(module, node)


def _known(target: object) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in ("aten", "ditc")
    return target is operator.getitem


def _check_weight(module: fx.GraphModule, node: fx.Node) -> None:
    found, recorded = weight(module, str(node.target)).shape, node.meta["val"].shape
    if found != recorded:
        raise PassError(
            f"node {node.name}: weight {node.target} is {list(found)}, the graph has "
            f"{list(recorded)}"
        )


def _check_inputs(graph: fx.Graph) -> None:
    slots: set[str] = set()
    body = False
    for node in graph.nodes:
        if node.op != "placeholder":
            body = body or node.op == "call_function"
            continue
        if body:
            raise PassError(f"input {node.name} comes after the first computed node")
        slot = node.meta.get(SLOT)
        if slot is None and slots:
            raise PassError(f"input {node.name} comes after a slot")
        if slot is None:
            continue
        if slot.name in slots:
            raise PassError(f"slot {slot.name} is looked up twice")
        if shape_of(node) != slot.shape:
            raise PassError(f"lookup of slot {slot.name} is {shape_of(node)}, not {slot.shape}")
        slots.add(slot.name)


def _signature(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_signature(entry) for entry in value)
    return value
