"""remove-dead-code: x → y, x → z with z used by nobody   becomes   x → y."""

import torch
from torch import nn

from ditc.passes import Program
from ditc.passes.base import run
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values

from .golden import changes, rewritten
from .models import noise
from .traced import traced

GOLDEN = """\
- body_weight = body.weight [4]
- mul = mul.Tensor(x, body_weight) [2, 5, 4]
- exp = exp(mul) [2, 5, 4]
- add = add.Tensor(relu, exp) [2, 5, 4]"""


class TwoBranches(nn.Module):
    """Two branches and their sum; the timestep is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.relu() + (x * self.weight).exp()


def one_branch_dead() -> Program:
    """Return a program that returns its first branch, though it still computes the second."""
    program = traced(TwoBranches())
    graph = program.graph_module.graph
    (total,) = graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    total.replace_all_uses_with(total.args[0])
    return program


def test_golden_graph() -> None:
    program = one_branch_dead()
    module, changed = rewritten(program, RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"remove-dead-code": 4}
    verify_values(module)


def test_values_stay_and_so_does_an_input_that_nobody_uses() -> None:
    module, _ = rewritten(one_branch_dead(), RemoveDeadCode())
    x = noise(2, 5, 4)
    assert torch.equal(module(x, torch.ones(2))[0], x.clamp(min=0))


def test_what_outputs_need_stays() -> None:
    """A near-miss: the same graph with both branches alive."""
    _, changed = rewritten(traced(TwoBranches()), RemoveDeadCode())
    assert changed == {"remove-dead-code": 0}


def test_a_second_run_changes_nothing() -> None:
    module, _ = rewritten(one_branch_dead(), RemoveDeadCode())
    assert run((RemoveDeadCode(),), module) == {"remove-dead-code": 0}
