"""clean-inference: x → assert, dropout, cast to its own dtype → y   becomes   x → y."""

import torch
from torch import fx, nn

from ditc.passes.base import run
from ditc.passes.clean_inference import CleanInference
from ditc.passes.unlifting import unlift
from ditc.passes.verify import verify_values

from .golden import text_of
from .models import noise

GOLDEN = """\
x = input [2, 5, 4]
relu = relu(x) [2, 5, 4]
to_1 = to.dtype(relu, torch.float64) [2, 5, 4]
mul_1 = mul.Tensor(to_1, 0.5) [2, 5, 4]
return [mul_1]"""


class Idle(nn.Module):
    """Dropout, a cast and a factor that do nothing; then, a near-miss, a cast and a factor that do.

    Each cast is behind an assert of its argument's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.dropout(x).to(torch.float32) * 1).relu().to(torch.float64) * 0.5


def exported() -> fx.GraphModule:
    return unlift(torch.export.export(Idle().eval(), (noise(2, 5, 4),), strict=False))


def test_golden_graph() -> None:
    module = exported()
    # 2 asserts, the dropout, the first cast, the first factor.
    assert run((CleanInference(),), module) == {"clean-inference": 5}
    assert "\n".join(text_of(module.graph)) == GOLDEN
    verify_values(module)


def test_values_stay() -> None:
    module, x = exported(), noise(2, 5, 4)
    run((CleanInference(),), module)
    assert torch.equal(module(x)[0], x.clamp(min=0).double() / 2)


def test_a_second_run_changes_nothing() -> None:
    module = exported()
    run((CleanInference(),), module)
    assert run((CleanInference(),), module) == {"clean-inference": 0}
