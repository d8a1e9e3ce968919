"""write-out-qr: qr(A)   becomes   Householder's reflections, which any engine computes."""

import pytest
import torch
from torch import nn

from ditc.export.write_out_qr import WriteOutQr, orthogonal
from ditc.passes.base import run
from ditc.passes.graphs import copy_module
from ditc.passes.verify import verify_values
from ditc.runtime.errors import PassError

from . import models


@pytest.mark.parametrize("shape", [(8, 4), (5, 5), (7, 1), (1, 1)])
def test_both_factors_are_lapacks(shape: tuple[int, int]) -> None:
    matrix = models.noise(*shape, seed=3).double()
    found, expected = orthogonal(matrix), torch.linalg.qr(matrix)
    for own, other in zip(found, expected, strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("matrix", [torch.eye(4)[:, :3], -torch.eye(4).triu(), torch.zeros(3, 2)])
def test_columns_that_are_zero_below_stay(matrix: torch.Tensor) -> None:
    for own, other in zip(orthogonal(matrix), torch.linalg.qr(matrix), strict=True):
        assert torch.equal(own, other)


class Decomposed(nn.Module):
    """Features in a basis that is made of both factors of a weight."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(models.noise(rows, 4, seed=5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made, upper = torch.linalg.qr(self.basis + 1e-8)
        return x @ (made @ upper.tanh()).T


def traced(rows: int) -> tuple[nn.Module, torch.fx.GraphModule]:
    module = Decomposed(rows)
    exported = torch.export.export(module, (models.noise(3, 4),))
    return module, copy_module(exported.module(check_guards=False))


def test_graphs_hold_no_decomposition_and_compute_the_same() -> None:
    module, graph_module = traced(8)
    assert run((WriteOutQr(),), graph_module) == {"write-out-qr": 1}
    verify_values(graph_module)
    assert not any("linalg" in str(node.target) for node in graph_module.graph.nodes)
    x = models.noise(3, 4, seed=1)
    with torch.no_grad():
        expected = module(x)
        (found,) = torch.utils._pytree.tree_leaves(graph_module(x))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert run((WriteOutQr(),), graph_module) == {"write-out-qr": 0}


def test_a_matrix_of_more_columns_is_refused() -> None:
    _, graph_module = traced(3)
    with pytest.raises(PassError, match=r"node linalg_qr: QR of \[3, 4\] isn't written out"):
        run((WriteOutQr(),), graph_module)
