"""transpose-weights: linear(x, W, b)   becomes   matmul(x, Wᵀ) + b."""

import torch
from torch import nn

from ditc.export.transpose_weights import TransposeWeights
from ditc.passes.base import run
from ditc.passes.graphs import weight
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values

from .golden import changes, rewritten, text_of
from .models import noise, randomised
from .samples import sample
from .traced import traced

GOLDEN = """\
+ body_tied_weight_transposed = body.tied.weight_transposed [4, 6]
- linear = linear(x, body_tied_weight, body_tied_bias) [2, 5, 6]
- linear_1 = linear(x, body_tied_weight) [2, 5, 6]
- add = add.Tensor(linear, linear_1) [2, 5, 6]
+ matmul_default = matmul(x, body_tied_weight_transposed) [2, 5, 6]
+ add_tensor = add.Tensor(matmul_default, body_tied_bias) [2, 5, 6]
+ matmul_default_1 = matmul(x, body_tied_weight_transposed) [2, 5, 6]
+ add = add.Tensor(add_tensor, matmul_default_1) [2, 5, 6]"""


class Projections(nn.Module):
    """One weight used twice, with a bias and without; one that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        del t
        once = self.tied(x) + nn.functional.linear(x, self.tied.weight)
        return nn.functional.linear(once, self.tied.weight.t() * 2)


def test_golden_graph() -> None:
    program = traced(randomised(Projections()))
    module, changed = rewritten(program, TransposeWeights(), RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed["transpose-weights"] == 2
    verify_values(module)


def test_the_weight_is_the_transposed_view() -> None:
    program = traced(randomised(Projections()))
    module, _ = rewritten(program, TransposeWeights())
    stored = weight(module, "body.tied.weight_transposed")
    original = weight(module, "body.tied.weight")
    assert stored.data_ptr() == original.data_ptr()
    assert torch.equal(stored, original.t())


def test_values_are_those_of_the_module() -> None:
    """Only the order of sums may differ: a few units in the last place of fp32."""
    model = sample("pixart", "cond-first")
    module, changed = rewritten(model.program, TransposeWeights(), RemoveDeadCode())
    kwargs = model.kwargs(3)
    with torch.no_grad():
        expected = model.module(**kwargs).sample
    (found,) = module(*model.program.bind(kwargs))
    before = text_of(model.program.graph_module.graph)
    assert changed["transpose-weights"] == sum(" linear(" in line for line in before) > 0
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


def test_a_computed_weight_is_left_alone() -> None:
    """A near-miss: what is made anew in every call isn't a weight."""
    body = randomised(Projections())
    module, _ = rewritten(traced(body), TransposeWeights())
    assert sum(" linear(" in line for line in text_of(module.graph)) == 1
    x, t = noise(2, 5, 4), torch.ones(2)
    with torch.no_grad():
        expected = body(x, t)
    assert (module(x, t)[0] - expected).abs().max() / expected.abs().max() <= 1e-6


def test_a_second_run_changes_nothing() -> None:
    module, _ = rewritten(sample("small", "cond-first").program, TransposeWeights())
    assert run((TransposeWeights(),), module) == {"transpose-weights": 0}
