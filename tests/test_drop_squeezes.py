"""drop-squeezes: squeeze(x, 1) of a dimension that isn't 1   becomes   x."""

import torch
from torch import nn

from ditc.export.drop_squeezes import DropSqueezes
from ditc.passes.base import run
from ditc.passes.verify import verify_values

from .golden import changes, rewritten
from .models import noise
from .traced import traced

GOLDEN = """\
- squeeze = squeeze.dim(x, 1) [2, 5, 4]
- relu = relu(squeeze) [2, 5, 4]
+ relu = relu(x) [2, 5, 4]"""


class Squeezes(nn.Module):
    """Squeezes a dimension of five, then one of one, which has to stay."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.squeeze(1).relu() + t[:, None, None].squeeze(1)[:, None]


def test_golden_graph() -> None:
    program = traced(Squeezes())
    module, changed = rewritten(program, DropSqueezes())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"drop-squeezes": 1}
    verify_values(module)


def test_values_stay() -> None:
    module, _ = rewritten(traced(Squeezes()), DropSqueezes())
    x, t = noise(2, 5, 4), torch.tensor([0.5, 2.0])
    assert torch.equal(module(x, t)[0], Squeezes()(x, t))


def test_a_second_run_changes_nothing() -> None:
    module, _ = rewritten(traced(Squeezes()), DropSqueezes())
    assert run((DropSqueezes(),), module) == {"drop-squeezes": 0}
