"""The verifier and the runner: what a pass may not leave behind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx

from ditc.passes import Method
from ditc.passes.base import Pass, run
from ditc.passes.clean_inference import CleanInference
from ditc.passes.graphs import add_lookup, copy_module, find
from ditc.passes.program import Slot
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.rewriting import rewrite
from ditc.passes.verify import verify, verify_values
from ditc.runtime.errors import PassError

from .golden import site_of
from .samples import sample

aten = torch.ops.aten


def graph_of() -> fx.GraphModule:
    return copy_module(sample("small", "cond-first").program.graph_module)


def node_of(graph: fx.Graph, name: str) -> fx.Node:
    node = find(graph, name)
    assert node is not None
    return node


def test_a_captured_graph_verifies() -> None:
    module = graph_of()
    verify(module)
    verify_values(module)


def late_input(graph: fx.Graph) -> None:
    with graph.inserting_after(node_of(graph, "linear_1")):
        graph.placeholder("late").meta["val"] = node_of(graph, "x").meta["val"]


def input_behind_slot(graph: fx.Graph) -> None:
    lookup = add_lookup(graph, SLOT)
    with graph.inserting_after(lookup):
        graph.placeholder("late").meta["val"] = node_of(graph, "x").meta["val"]


def lookup_twice(graph: fx.Graph) -> None:
    add_lookup(graph, SLOT)
    add_lookup(graph, SLOT)


def lookup_of_another_shape(graph: fx.Graph) -> None:
    lookup = add_lookup(graph, SLOT)
    lookup.meta["val"] = node_of(graph, "t").meta["val"]


def used_before(graph: fx.Graph) -> None:
    node_of(graph, "linear_1").append(node_of(graph, "add"))


def without_value(graph: fx.Graph) -> None:
    del node_of(graph, "linear_1").meta["val"]


def foreign_operator(graph: fx.Graph) -> None:
    node_of(graph, "gelu").target = torch.relu


def foreign_namespace(graph: fx.Graph) -> None:
    node_of(graph, "gelu").target = torch.ops.prims.exp.default


def module_call(graph: fx.Graph) -> None:
    node_of(graph, "gelu").op = "call_method"
    node_of(graph, "gelu").target = "exp"


def missing_weight(graph: fx.Graph) -> None:
    node_of(graph, "time_weight").target = "time.gone"


def other_weight(graph: fx.Graph) -> None:
    node_of(graph, "time_weight").target = "time.bias"


def output_of_several(graph: fx.Graph) -> None:
    node = node_of(graph, "add_2")
    node.meta["val"] = [node.meta["val"]]


SLOT = Slot("attentions.0.output", "attentions.0", "output", (4, 25, 16), torch.float32)
FAULTS: dict[Callable[[fx.Graph], None], str] = {
    late_input: "input late comes after the first computed node",
    input_behind_slot: "input late comes after a slot",
    lookup_twice: "slot attentions.0.output is looked up twice",
    lookup_of_another_shape: "lookup of slot attentions.0.output is (4,), not (4, 25, 16)",
    used_before: "",
    without_value: "node linear_1 has no value",
    foreign_operator: "node gelu: <built-in method relu",
    foreign_namespace: "node gelu: prims.exp.default is no aten or ditc operator",
    module_call: "node gelu: a call_method doesn't belong in a captured graph",
    missing_weight: "",
    other_weight: "node time_weight: weight time.bias is [16], the graph has [16, 1]",
    output_of_several: "node add_2 has no tensor value",
}


@pytest.mark.filterwarnings("ignore:Node time_weight target time.gone:UserWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_found(fault: Callable[[fx.Graph], None]) -> None:
    module = graph_of()
    fault(module.graph)
    with pytest.raises(PassError) as caught:
        verify(module)
    assert str(caught.value).startswith(FAULTS[fault])
    assert "\n" not in str(caught.value)


def test_values_that_are_not_what_the_graph_says() -> None:
    module = graph_of()
    view = node_of(module.graph, "view")
    view.args = (view.args[0], [2, 25, 4, -1])
    verify(module)
    with pytest.raises(PassError) as caught:
        verify_values(module)
    assert str(caught.value) == (
        "node view is recorded as ((4, 25, 2, 8), torch.float32), but computes "
        "((2, 25, 4, 8), torch.float32)"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_operators_that_refuse_their_arguments() -> None:
    module = graph_of()
    view = node_of(module.graph, "view")
    view.args = (view.args[0], [3, 25, 2, -1])
    with pytest.raises(PassError, match=r"node view \(aten.reshape.default\): "):
        verify_values(module)


@dataclass(frozen=True)
class Breaking(Pass):
    name: ClassVar[str] = "breaking"

    def rewrite(self, graph: fx.Graph) -> int:
        without_value(graph)
        return 1


def test_the_runner_names_the_pass_at_fault() -> None:
    with pytest.raises(PassError) as caught:
        run((RemoveDeadCode(), Breaking()), graph_of())
    assert str(caught.value) == "pass breaking: node linear_1 has no value"


def test_the_runner_adds_up_what_passes_change() -> None:
    module = graph_of()
    with module.graph.inserting_after(node_of(module.graph, "gelu")):
        dead = module.graph.call_function(aten.relu.default, (node_of(module.graph, "gelu"),))
    dead.meta["val"] = node_of(module.graph, "gelu").meta["val"]
    assert run((RemoveDeadCode(), RemoveDeadCode()), module) == {"remove-dead-code": 1}


def test_dead_inputs_stay() -> None:
    module = graph_of()
    lookup = add_lookup(module.graph, SLOT)
    assert run((RemoveDeadCode(),), module) == {"remove-dead-code": 0}
    assert find(module.graph, lookup.name) is lookup


def insert(graph: fx.Graph, target: object, *args: object) -> fx.Node:
    source = node_of(graph, "gelu")
    users = list(source.users)
    with graph.inserting_after(source):
        node = graph.call_function(target, (source, *args))
    node.meta["val"] = target(source.meta["val"], *args)
    for user in users:
        user.replace_input_with(source, node)
    return node


@pytest.mark.parametrize(
    ("target", "args", "removed"),
    [
        (aten.dropout.default, (0.5, False), 1),
        (aten.dropout.default, (0.0, True), 1),
        (aten.dropout.default, (0.5, True), 0),
        (aten.mul.Tensor, (1.0,), 1),
        (aten.mul.Tensor, (2.0,), 0),
        (aten.div.Tensor, (1,), 1),
        (aten.to.dtype, (torch.float32,), 1),
        (aten.to.dtype, (torch.float64,), 0),
        (aten.alias.default, (), 1),
        (aten.relu.default, (), 0),
    ],
)
def test_cleaning_removes_what_does_nothing(
    target: object, args: tuple[object, ...], removed: int
) -> None:
    module = graph_of()
    with node_of(module.graph, "gelu").meta["val"].fake_mode:
        node = insert(module.graph, target, *args)
    assert CleanInference().rewrite(module.graph) == removed
    assert (find(module.graph, node.name) is None) == bool(removed)
    assert CleanInference().rewrite(module.graph) == 0


def test_a_rewrite_that_does_not_reach_every_site_is_an_error() -> None:
    program = sample("small", "cond-first").program
    with pytest.raises(PassError, match="pass share-steps: changed 0 sites, expected 1"):
        rewrite(program, {"elsewhere": Method.AST}, {})


def test_a_rewrite_leaves_the_program_as_it_was() -> None:
    program = sample("small", "cond-first").program
    before = str(program.graph_module.graph)
    site = site_of(program)
    module = rewrite(program, {site.name: Method.AST}, {})
    assert str(program.graph_module.graph) == before
    assert str(module.graph) != before
    assert module.time.weight is program.graph_module.time.weight
