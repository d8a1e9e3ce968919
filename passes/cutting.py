"""Choose what leaves the steps: where to cut a program between its prologue and its steps.

A cut keeps every value that crosses it, a prompt's once, a step's for every step. It saves the
steps weights they no longer read, the multiply-adds of the prompt's part, and operators. All of it
is counted in bytes: a multiply-add as what a machine reads while it computes 64 of them, an
operator, or one more input, as the 16 KiB that it reads while it starts one. Values worth less
than they take stay in the steps.

The cut that is worth most is a minimum cut of a flow network (Picard 1976, "Maximal closure of a
graph and applications to combinatorial problems"): a node pulls along what it is made from.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import networkx
import torch
from torch import fx

from .batch_steps import can_batch
from .counting import node_multiply_adds
from .dependence import Level
from .graphs import weight
from .operators import LAYOUT

__all__ = ["Cut", "best_cut"]

MULTIPLY_ADDS_PER_BYTE = 64
OPERATOR_BYTES = 16 * 1024
VALUE_BYTES = OPERATOR_BYTES + 1
"""What an engine spends on one more input: an operator's worth, and a little so that ties go to
fewer values."""
HOISTED, KEPT = "hoisted", "kept"


@dataclass(frozen=True)
class Cut:
    """What leaves the steps.

    Attributes:
        prompt: nodes that run once for a prompt.
        step: nodes that run once for all steps.
    """

    prompt: frozenset[fx.Node]
    step: frozenset[fx.Node]

    def on(self, graph: fx.Graph) -> "Cut":
        """Return the cut of another graph whose nodes have the same names."""
        prompt, step = ({node.name for node in part} for part in (self.prompt, self.step))
        return Cut(
            frozenset(node for node in graph.nodes if node.name in prompt),
            frozenset(node for node in graph.nodes if node.name in step),
        )


def best_cut(
    module: fx.GraphModule, level: Mapping[fx.Node, Level], pinned: Set[fx.Node], steps: int
) -> Cut:
    """Return the cut of a graph that is worth most; empty if none is worth anything.

    Args:
        module: the graph.
        level: of its nodes.
        pinned: nodes that have to stay.
        steps: how many times a step's values are kept.
    """
    free = {
        node
        for node in module.graph.nodes
        if node.op == "call_function"
        and level[node] in (Level.PROMPT, Level.STEP)
        and node not in pinned
        and (level[node] is Level.PROMPT or can_batch(node))
    }
    network = _network(module, level, free, steps)
    if HOISTED not in network or KEPT not in network:
        return Cut(frozenset(), frozenset())
    _, (hoisted, _) = networkx.minimum_cut(network, HOISTED, KEPT)
    chosen = {node for node in free if node.name in hoisted}
    return Cut(
        frozenset(node for node in chosen if level[node] is Level.PROMPT),
        frozenset(node for node in chosen if level[node] is Level.STEP),
    )


def _network(
    module: fx.GraphModule, level: Mapping[fx.Node, Level], free: Set[fx.Node], steps: int
) -> "networkx.DiGraph[str]":
    """Return the flow network; edges without a capacity can't be cut."""
    network: networkx.DiGraph[str] = networkx.DiGraph()
    for node in free:
        network.add_edge(HOISTED, node.name, capacity=_saved(node, level[node]))
        for source in node.all_input_nodes:
            if source in free:
                network.add_edge(node.name, source.name)
            elif source.op == "call_function" and level[source] is not Level.CONSTANT:
                network.add_edge(node.name, KEPT)
        _add_storage(network, node, free, steps if level[node] is Level.STEP else 1)
    for number, (tensor, users) in enumerate(_weights(module)):
        if users <= free:
            name = f"{number} weight"
            network.add_edge(HOISTED, name, capacity=tensor.nbytes)
            for user in users:
                network.add_edge(name, user.name)
    return network


def _add_storage(
    network: "networkx.DiGraph[str]", node: fx.Node, free: Set[fx.Node], times: int
) -> None:
    """Have a node that is hoisted pay once for being kept if any of its users isn't hoisted."""
    stays = f"{node.name} stored"
    size = _stored(node)
    if size is None:
        network.add_edge(node.name, stays)
    else:
        network.add_edge(node.name, stays, capacity=times * size + VALUE_BYTES)
    for user in node.users:
        network.add_edge(stays, user.name if user in free else KEPT)


def _saved(node: fx.Node, level: Level) -> int:
    """Return what a step saves by not running a node, in bytes.

    Of a step's part all steps still run every multiply-add, in one call.
    """
    operators = 0 if node.target in LAYOUT else OPERATOR_BYTES
    if level is Level.STEP:
        return operators
    return operators + node_multiply_adds(node) // MULTIPLY_ADDS_PER_BYTE


def _stored(node: fx.Node) -> int | None:
    """Return the bytes of a node's value, None if engines can't be given it."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_complex():
        return None
    return value.nbytes


def _weights(module: fx.GraphModule) -> list[tuple[torch.Tensor, set[fx.Node]]]:
    """Return each weight, tied ones once, and the nodes that use it."""
    found: dict[int, tuple[torch.Tensor, set[fx.Node]]] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        tensor = weight(module, str(node.target))
        found.setdefault(id(tensor), (tensor, set()))[1].update(node.users)
    return list(found.values())
