"""choose-by-logic: where(c, a, b) of booleans   becomes   (c and a) or (not c and b)."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.export.choose_by_logic import ChooseByLogic
from ditc.passes import Plan, capture, schedule
from ditc.passes.base import run
from ditc.passes.graphs import copy_module
from ditc.passes.verify import verify_values
from ditc.runtime import Bundle

from .golden import changes
from .models import noise


class Choosing(nn.Module):
    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        seen = visible.masked_fill(x[:, 0] > 0, False).masked_fill(x[:, 1] > 1, True)
        seen = torch.where(x > 0, seen[:, None], visible[:, None])
        return torch.where(seen, x, -x)


def kwargs() -> dict[str, torch.Tensor]:
    return {"x": noise(2, 3, 9), "visible": noise(2, 9, seed=1) > 0}


GOLDEN = """\
- masked_fill = masked_fill.Scalar(visible, gt, False) [2, 9]
+ logical_not_default = logical_not(gt) [2, 9]
+ logical_and_default = logical_and(visible, logical_not_default) [2, 9]"""


def test_golden_graph_and_a_second_run() -> None:
    program = capture(Choosing(), kwargs())
    module = copy_module(program.graph_module)
    assert run((ChooseByLogic(),), module)["choose-by-logic"] == 3
    found = changes(program.graph_module.graph, module.graph).splitlines()
    assert set(GOLDEN.splitlines()) <= set(found)
    verify_values(module)
    assert torch.equal(module(*kwargs().values())[0], Choosing()(**kwargs()))
    assert run((ChooseByLogic(),), module)["choose-by-logic"] == 0
    assert len(module.graph.find_nodes(op="call_function", target=torch.ops.aten.where.self)) == 1


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_takes_it(tmp_path: Path) -> None:
    program = capture(Choosing(), kwargs())
    sched = schedule(program, Plan.uniform(program, 1, "full"))
    bundle = Bundle.open(compile_bundle(sched, tmp_path / "bundle", jobs=1), threads=1)
    found = bundle.step(0, **{name: value.numpy() for name, value in kwargs().items()})
    assert torch.equal(torch.from_numpy(found), Choosing()(**kwargs()))
