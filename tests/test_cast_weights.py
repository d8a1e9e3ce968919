"""cast-weights: to(W, float16)   becomes   W_float16, a weight that is stored in that dtype."""

import torch
from torch import nn

from ditc.export.cast_weights import CastWeights
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values

from .golden import changes, rewritten
from .models import randomised
from .traced import traced

GOLDEN = """\
- to = to.dtype(body_w, torch.float16) [3]
+ body_w_float16 = body.w_float16 [3]
- add = add.Tensor(to, to_1) [3]
+ add = add.Tensor(body_w_float16, to_1) [3]"""


class Casts(nn.Module):
    """A weight that is cast, and a value that is: the near-miss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        del t
        return self.w.half() + x[0, 0, :3].half() + self.w.sum().half()


def test_golden_graph() -> None:
    program = traced(randomised(Casts()))
    module, changed = rewritten(program, CastWeights(), RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed["cast-weights"] == 1
    verify_values(module)
    again = CastWeights().rewrite(module.graph)
    assert again == 0


def test_no_value_is_cast_yet() -> None:
    module, _ = rewritten(traced(randomised(Casts())), CastWeights())
    assert module.get_buffer("body.w_float16").is_meta
