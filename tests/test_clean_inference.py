"""clean-inference: x → assert, dropout, cast to its own dtype → y   becomes   x → y."""

import torch
from torch import fx, nn

from ditc.passes.base import run
from ditc.passes.capturing import unlift
from ditc.passes.clean_inference import CleanInference

from .golden import changes
from .models import noise

GOLDEN = """\
- dropout = dropout(x, 0.1, False) [2, 5, 4]
- _assert_tensor_metadata_default = _assert_tensor_metadata(dropout, None, None, torch.float32, \
device=cpu, layout=torch.strided) no value
- to = to.dtype(dropout, torch.float32) [2, 5, 4]
- mul = mul.Tensor(to, 1) [2, 5, 4]
- relu = relu(mul) [2, 5, 4]
+ relu = relu(x) [2, 5, 4]"""


class Idle(nn.Module):
    """Dropout, a cast and a factor that do nothing; then a cast and a factor that do something."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.dropout(x).to(torch.float32) * 1).relu().to(torch.float64) * 0.5


def exported() -> fx.GraphModule:
    program = torch.export.export(Idle().eval(), (noise(2, 5, 4),), strict=False)
    return unlift(program)


def test_golden_graph_keeps_what_does_something() -> None:
    module = exported()
    print(changes(exported().graph, module.graph))
    assert run((CleanInference(),), module)["clean-inference"] >= 4
    print(changes(exported().graph, module.graph))
