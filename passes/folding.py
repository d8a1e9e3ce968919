"""Fold equal halves: f(x, x) up to g(f, prompt)   becomes   f(x), repeated before g.

Guidance feeds the same latents and timestep to both halves of a batch. What is made from them
before conditioning enters is the same in both, and is computed on one.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .base import run
from .counting import node_multiply_adds
from .dependence import Level, levels
from .graphs import BOTH_HALVES, ONE_HALF, call, copy_module, infer
from .halving import BatchAxes, check_half, take_half
from .identity import in_batch
from .program import Input, Program
from .remove_dead_code import RemoveDeadCode
from .sites import region
from .verify import verify_values

__all__ = ["fold_halves"]

aten = torch.ops.aten


def fold_halves(program: Program) -> Program:
    """Return a program that holds for equal halves of latents and timestep alone.

    Sites that a plan may compress are folded whole or not at all; to share a folded one across
    CFG would save nothing. What is folded is found by dependence; where no multiply-add is among
    it, the program is returned as it is.

    Args:
        program: with both halves in one batch, without a prologue.

    Raises:
        PassError: if there are no halves in one batch.
    """
    if not in_batch(program.cfg):
        raise PassError(
            f"halves can't be folded: the program's CFG layout is {program.cfg}, expected both "
            "halves in one batch"
        )
    graph = program.graph_module.graph
    equal, level = _equal(program), levels(program)
    axes = {node.name: axis for node, axis in equal.items()}
    wanted = {node.name for node in equal if level[node] is Level.LATENTS}
    inside = {
        site.name: {node.name for node in region(graph, site.projections, site.exits)}
        for site in program.sites
        if site.eligible
    }
    possible = _halve(copy_module(program.graph_module).graph, wanted, axes)
    for nodes in inside.values():
        possible -= nodes if nodes - possible else set()
    chosen = _trimmed(graph, possible, set().union(*inside.values()))
    if not any(node_multiply_adds(node) for node in graph.nodes if node.name in chosen):
        return program
    module = copy_module(program.graph_module)
    if _halve(module.graph, chosen, axes) != chosen:
        raise PassError("halves can't be folded: a node's value isn't that of one half")
    _repeat(module.graph, chosen, axes)
    run((RemoveDeadCode(),), module)
    verify_values(module)
    return replace(
        program,
        graph_module=module,
        folded=frozenset(name for name, nodes in inside.items() if nodes <= chosen),
    )


def _equal(program: Program) -> dict[fx.Node, int]:
    """Return the nodes whose values are the same in both halves, and the axis of the batch."""
    graph, batch = program.graph_module.graph, program.latents.shape[0]
    entries = {entry.name: entry for entry in program.inputs}
    given = {node: entries[node.name] for node in graph.find_nodes(op="placeholder")}
    axes = BatchAxes([node for node, entry in given.items() if _is_equal(entry, batch)])
    different = {node for node, entry in given.items() if _differs(entry, batch)}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if any(arg in different for arg in node.all_input_nodes):
            different.add(node)
            continue
        try:
            axes.follow(node, batch)
        except PassError:
            different.add(node)
    return axes.axis


def _is_equal(entry: Input, batch: int) -> bool:
    return entry.role in ("latents", "timestep") and entry.shape[:1] == (batch,)


def _differs(entry: Input, batch: int) -> bool:
    """Whether conditioning may hold both halves, be it several rows for each sample."""
    return entry.role == "condition" and len(entry.shape) > 0 and entry.shape[0] % batch == 0


def _halve(graph: fx.Graph, names: Set[str], axes: Mapping[str, int]) -> set[str]:
    """Have nodes compute one half, as far as that can be done; return the names of those that do.

    Args:
        graph: changed in place; nodes that take a halved one are not.
        names: of the nodes to halve.
        axes: by name, the axis of the batch of all that is the same in both halves.
    """
    halving = BatchAxes([])
    done: set[str] = set()
    for node in list(graph.nodes):
        if node.name not in names:
            continue
        before = node.args, node.kwargs, node.meta["val"]
        try:
            _slice_inputs(graph, node, halving, axes)
            halving.halve(node)
            infer([node])
            check_half(node, before[2], axes[node.name])
        except PassError:
            node.args, node.kwargs, node.meta["val"] = before
            halving.axis.pop(node, None)
            continue
        node.meta[ONE_HALF] = True
        done.add(node.name)
    return done


def _slice_inputs(
    graph: fx.Graph, node: fx.Node, halving: BatchAxes, axes: Mapping[str, int]
) -> None:
    """Give a node one half of what it takes in both.

    Raises:
        PassError: if it takes something that isn't one tensor.
    """
    for source in node.all_input_nodes:
        if source in halving.axis or source.name not in axes:
            continue
        axis = axes[source.name]
        with graph.inserting_before(node):
            half = take_half(source, axis)
        half.meta[ONE_HALF] = True
        halving.axis[half] = axis
        node.replace_input_with(source, half)


def _trimmed(graph: fx.Graph, names: Set[str], kept: Set[str]) -> set[str]:
    """Leave out what costs more to repeat for both halves than what it is made from.

    Args:
        graph: the whole.
        names: of the nodes that can be folded.
        kept: names of nodes to keep among them.
    """
    chosen = set(names)
    for node in reversed(list(graph.nodes)):
        if node.name not in chosen or node.name in kept or node_multiply_adds(node):
            continue
        sources = [source for source in node.all_input_nodes if source.name in chosen]
        values = [entry.meta["val"] for entry in (node, *sources)]
        if any(user.name in chosen for user in node.users):
            continue
        if not all(isinstance(value, torch.Tensor) for value in values):
            continue
        fresh = [source for source in sources if not _leaves(source, chosen)]
        if sum(_bytes(source) for source in fresh) <= _bytes(node):
            chosen.discard(node.name)
    return chosen


def _leaves(node: fx.Node, chosen: Set[str]) -> bool:
    return any(user.name not in chosen for user in node.users)


def _bytes(node: fx.Node) -> int:
    value: torch.Tensor = node.meta["val"]
    return value.nbytes


def _repeat(graph: fx.Graph, names: Set[str], axes: Mapping[str, int]) -> None:
    """Repeat what leaves the folded nodes for both halves."""
    for node in list(graph.nodes):
        outside: Sequence[fx.Node] = [user for user in node.users if user.name not in names]
        if node.name not in names or not outside:
            continue
        with graph.inserting_after(node):
            both = call(graph, aten.cat.default, [node, node], axes[node.name])
        both.meta[BOTH_HALVES] = axes[node.name]
        for user in outside:
            user.replace_input_with(node, both)
