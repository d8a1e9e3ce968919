"""cast-precision: linear(x, W)   becomes   linear(x as half, W as half)."""

import torch
from torch import nn

from ditc.passes import Program
from ditc.passes.cast_precision import CastPrecision
from ditc.passes.dependence import levels
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values

from .golden import changes, rewritten
from .models import noise, randomised
from .traced import traced

GOLDEN = """\
+ to_dtype = to.dtype(x, torch.float16) [2, 5, 4]
+ to_dtype_1 = to.dtype(body_first_weight, torch.float16) [6, 4]
+ to_dtype_2 = to.dtype(body_first_bias, torch.float16) [6]
+ to_dtype_6 = to.dtype(body_second_weight, torch.float16) [4, 6]
- linear_1 = linear(x, body_first_weight, body_first_bias) [2, 5, 6]
+ to_dtype_3 = to.dtype(unsqueeze_1, torch.float16) [2, 1, 6]
+ linear_1 = linear(to_dtype, to_dtype_1, to_dtype_2) [2, 5, 6]
- add = add.Tensor(linear_1, unsqueeze_1) [2, 5, 6]
+ add = add.Tensor(linear_1, to_dtype_3) [2, 5, 6]
+ to_dtype_4 = to.dtype(add, torch.float32) [2, 5, 6]
- pow_1 = pow.Tensor_Scalar(add, 2) [2, 5, 6]
+ pow_1 = pow.Tensor_Scalar(to_dtype_4, 2) [2, 5, 6]
- mul = mul.Tensor(add, rsqrt) [2, 5, 6]
+ mul = mul.Tensor(to_dtype_4, rsqrt) [2, 5, 6]
- linear_2 = linear(mul, body_second_weight) [2, 5, 4]
- return [linear_2]
+ to_dtype_5 = to.dtype(mul, torch.float16) [2, 5, 6]
+ linear_2 = linear(to_dtype_5, to_dtype_6) [2, 5, 4]
+ to_dtype_7 = to.dtype(linear_2, torch.float32) [2, 5, 4]
+ return [to_dtype_7]"""


class Block(nn.Module):
    """A projection, a timestep's embedding added, a written-out norm, another projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.time = nn.Linear(1, 6)
        self.second = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = self.time(t[:, None].sin())[:, None]
        x = self.first(x) + time
        x = x * torch.rsqrt((x**2).mean(dim=-1, keepdim=True) + 1e-6)
        return self.second(x)


def pass_for(program: Program, keep: frozenset[str] = frozenset()) -> CastPrecision:
    level = {node.name: found for node, found in levels(program).items()}
    none: frozenset[str] = frozenset()
    return CastPrecision(torch.float16, level, frozenset({"t"}), none, none, none, keep)


def test_golden_graph() -> None:
    """Norm, timestep's embedding, input and output stay in full width."""
    program = traced(randomised(Block()))
    module, changed = rewritten(program, pass_for(program), RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed["cast-precision"] == 8
    verify_values(module)


def test_values_are_those_of_halves() -> None:
    body = randomised(Block(), std=0.5)
    program = traced(body)
    module, _ = rewritten(program, pass_for(program))
    x, t = noise(2, 5, 4, seed=3), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        (found,) = module(x, t)
        expected = body(x, t)
        hidden = body.first.half()(x.half()) + body.time(t[:, None].sin())[:, None].half()
        wide = hidden.float()
        wide = wide * torch.rsqrt((wide**2).mean(dim=-1, keepdim=True) + 1e-6)
        halves = body.second.half()(wide.half()).float()
    assert torch.equal(found, halves)
    assert found.dtype is torch.float32
    assert 0 < (found - expected).abs().max() <= 4e-3 * expected.abs().max()


def test_what_is_kept_stays_in_full_width() -> None:
    """And so does what takes its values: a half couldn't hold them there either."""
    program = traced(randomised(Block()))
    module, _ = rewritten(program, pass_for(program, frozenset({"linear_1"})))
    dtypes = {
        node.name: node.meta["val"].dtype for node in module.graph.nodes if "val" in node.meta
    }
    assert dtypes["linear_1"] is torch.float32
    assert dtypes["add"] is torch.float32
    assert dtypes["linear_2"] is torch.float16


def test_a_second_run_changes_nothing() -> None:
    program = traced(randomised(Block()))
    stage = pass_for(program)
    once, _ = rewritten(program, stage)
    lines = [node.format_node() for node in once.graph.nodes]
    stage.rewrite(once.graph)
    assert [node.format_node() for node in once.graph.nodes] == lines
