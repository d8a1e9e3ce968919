"""Small functions over FX graphs that passes share."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ditc.runtime.errors import PassError, first_line

from .program import Slot

__all__ = [
    "BOTH_HALVES",
    "ONE_HALF",
    "SLOT",
    "add_lookup",
    "add_outputs",
    "add_weight",
    "call",
    "copy_module",
    "dtype_name",
    "fake_mode",
    "find",
    "flat_outputs",
    "given",
    "infer",
    "module_path",
    "shape_of",
    "weight",
]

SLOT = "ditc.slot"
"""Key of `Node.meta` under which a lookup keeps its slot."""
ONE_HALF = "ditc.one_half"
"""Key that marks a value as that of one half, for both halves are the same."""
BOTH_HALVES = "ditc.both_halves"
"""Key under which a value that was repeated for both halves keeps the axis of the batch."""


def weight(module: fx.GraphModule, target: str) -> torch.Tensor:
    """Return the tensor that a `get_attr` of that target yields.

    Raises:
        PassError: if the module has no such tensor.
    """
    holder: object = module
    for part in target.split("."):
        holder = getattr(holder, part, None)
    if not isinstance(holder, torch.Tensor):
        raise PassError(f"the module has no weight {target}")
    return holder


def add_weight(graph: fx.Graph, target: str, value: torch.Tensor) -> fx.Node:
    """Add a `get_attr` at the insert point, its tensor registered with the graph's module."""
    owner = graph.owning_module
    assert owner is not None
    path, _, name = target.rpartition(".")
    if path and not _has(owner, path):
        owner.add_submodule(path, torch.nn.Module())
    owner.get_submodule(path).register_buffer(name, value)
    node = graph.get_attr(target)
    node.meta["val"] = _fake(graph, value)
    return node


def _fake(graph: fx.Graph, value: torch.Tensor) -> torch.Tensor:
    mode = fake_mode(graph)
    if not value.is_meta:
        return mode.from_tensor(value, static_shapes=True)
    with mode:  # graphs compute on the CPU, where a weight would be if it were loaded
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _has(module: fx.GraphModule, path: str) -> bool:
    return any(name == path for name, _ in module.named_modules())


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """Return a module with a copy of the graph and the very same weights."""
    graph = fx.Graph()
    output = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    assert isinstance(output, tuple)
    value, node = output
    graph.output(value).meta = dict(node.meta)
    return fx.GraphModule(module, graph)


def find(graph: fx.Graph, name: str) -> fx.Node | None:
    """Return the node of that name, None if it isn't there (any more)."""
    return next((node for node in graph.nodes if node.name == name), None)


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """Return the mode that the graph's fake values live in."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise PassError("graph has no value with a shape: capture it with ditc.passes.capture")


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without its module: `float32`."""
    return str(dtype).removeprefix("torch.")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor.

    Raises:
        PassError: if the node's value is not one tensor.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise PassError(f"node {node.name} has no tensor value")
    return tuple(value.shape)


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that a node was traced in, empty if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def infer(nodes: Iterable[fx.Node]) -> None:
    """Set `meta["val"]` of nodes, given in order, from their arguments' values.

    Raises:
        PassError: if an operator refuses its arguments.
    """
    for node in nodes:
        if node.op != "call_function" or not callable(node.target):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
        try:
            with fake_mode(node.graph), _silent():
                node.meta["val"] = node.target(*args, **kwargs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise PassError(f"node {node.name} ({node.target}): {first_line(error)}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging the traceback of what is raised as one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


def given(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """Return an argument of a call by place or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def call(graph: fx.Graph, target: Callable[..., object], *args: object) -> fx.Node:
    """Add a call at the insert point, its value inferred."""
    node = graph.call_function(target, args)  # type: ignore[arg-type]
    infer([node])
    return node


def add_lookup(graph: fx.Graph, slot: Slot) -> fx.Node:
    """Add a graph input that is bound to a slot, after all other inputs."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    name = "slot_" + "".join(c if c.isalnum() else "_" for c in slot.name)
    with graph.inserting_after(placeholders[-1]):
        node = graph.placeholder(name)
    with fake_mode(graph):
        device = placeholders[0].meta["val"].device
        node.meta["val"] = torch.empty(slot.shape, dtype=slot.dtype, device=device)
    node.meta[SLOT] = slot
    return node


def flat_outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the nodes that the graph returns."""
    (values,) = graph.output_node().args
    assert isinstance(values, tuple)
    return tuple(value for value in values if isinstance(value, fx.Node))


def add_outputs(graph: fx.Graph, nodes: Iterable[fx.Node]) -> None:
    """Return more nodes behind those that the graph returns."""
    graph.output_node().args = ((*flat_outputs(graph), *nodes),)
