"""The cut between prologue and steps, against all cuts there are."""

import math
from collections.abc import Set

import pytest
import torch
from torch import fx

from ditc.passes import Program
from ditc.passes.counting import node_multiply_adds
from ditc.passes.cutting import Cut, best_cut
from ditc.passes.dependence import Level, levels
from ditc.passes.graphs import flat_outputs, weight
from ditc.passes.operators import LAYOUT

from .test_splitting import conditioned

KIB_16 = 16 * 1024


def cuts(program: Program) -> list[frozenset[fx.Node]]:
    """Return all cuts: what is in one is made from inputs, weights, constants and the rest of it.

    All of conditioned's operators can run for all steps.
    """
    level, found = levels(program), [frozenset[fx.Node]()]
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function" and level[node] in (Level.PROMPT, Level.STEP):
            made = {arg for arg in node.all_input_nodes if arg.op == "call_function"}
            needed = {arg for arg in made if level[arg] is not Level.CONSTANT}
            found += [cut | {node} for cut in found if needed <= cut]
    return found


def worth(program: Program, cut: Set[fx.Node], steps: int) -> float:
    """Return what a cut saves less what it keeps, in bytes."""
    level, total = levels(program), 0
    for node in cut:
        total += 0 if node.target in LAYOUT else KIB_16
        total += node_multiply_adds(node) // 64 if level[node] is Level.PROMPT else 0
        if not set(node.users) <= cut:
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor):  # which no engine can be given
                return -math.inf
            total -= (steps if level[node] is Level.STEP else 1) * value.nbytes + KIB_16 + 1
    for node in program.graph_module.graph.find_nodes(op="get_attr"):
        if set(node.users) <= cut:
            total += weight(program.graph_module, str(node.target)).nbytes
    return total


def found(program: Program, steps: int) -> Cut:
    graph = program.graph_module.graph
    return best_cut(program.graph_module, levels(program), set(flat_outputs(graph)), steps)


@pytest.mark.parametrize("steps", [1, 4, 20, 60, 3000])
def test_no_cut_is_worth_more(steps: int) -> None:
    program = conditioned()
    best = found(program, steps)
    values = [worth(program, cut, steps) for cut in cuts(program)]
    assert worth(program, best.prompt | best.step, steps) == max(values) > 0
    assert min(values) < 0
    level = levels(program)
    assert {level[node] for node in best.prompt} <= {Level.PROMPT}
    assert {level[node] for node in best.step} <= {Level.STEP}


def test_what_is_pinned_stays() -> None:
    program = conditioned()
    best = found(program, 4)
    pinned = next(node for node in program.graph_module.graph.nodes if node in best.step)
    again = best_cut(program.graph_module, levels(program), {pinned}, 4)
    assert pinned not in again.step
    assert not {node for node in again.step if pinned in node.all_input_nodes}


def test_a_cut_is_found_again_in_a_copy() -> None:
    program = conditioned()
    best = found(program, 4)
    copy = fx.Graph()
    copy.graph_copy(program.graph_module.graph, {})
    again = best.on(copy)
    assert {node.name for node in again.prompt} == {node.name for node in best.prompt}
    assert {node.name for node in again.step} == {node.name for node in best.step}
    assert all(node.graph is copy for node in again.prompt | again.step)
