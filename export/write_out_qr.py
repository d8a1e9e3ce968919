"""Write out QR: qr(A)   becomes   Householder's reflections, which any engine computes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ditc.passes.base import Pass
from ditc.passes.graphs import given, infer, shape_of
from ditc.runtime.errors import PassError

__all__ = ["WriteOutQr", "orthogonal"]

aten = torch.ops.aten


@dataclass(frozen=True)
class WriteOutQr(Pass):
    """Replace reduced QR decompositions of matrices, with the signs that LAPACK gives.

    A reflection has a dozen operators, and there is one for each column: of use for the small
    matrices that a model makes orthogonal.
    """

    name: ClassVar[str] = "write-out-qr"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace decompositions and return how many.

        Raises:
            PassError: if one isn't of a matrix with at least as many rows as columns.
        """
        nodes = graph.find_nodes(op="call_function", target=aten.linalg_qr.default)
        for node in nodes:
            matrix = node.args[0]
            assert isinstance(matrix, fx.Node)
            shape = shape_of(matrix)
            if len(shape) != 2 or shape[0] < shape[1] or given(node, 1, "mode", "reduced") == "r":
                raise PassError(
                    f"node {node.name}: QR of {list(shape)} isn't written out, only the reduced "
                    "one of a matrix with at least as many rows as columns is"
                )
            parts = _inlined(graph, node, matrix)
            for user in list(node.users):
                number = user.args[1]
                assert isinstance(number, int)
                user.replace_all_uses_with(parts[number])
                graph.erase_node(user)
            graph.erase_node(node)
        return len(nodes)


def orthogonal(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q and R of a matrix's reduced QR decomposition, as LAPACK signs them.

    By Householder's reflections (Golub and Van Loan, Matrix Computations, 5.2), each of which
    maps a column to -sign of its first entry; one of a column that is zero below does nothing.

    Args:
        matrix: `[rows, columns]`, at least as many rows as columns.
    """
    rows, columns = matrix.shape
    left, reflections = matrix, []
    for at in range(min(columns, rows - 1)):
        first, below = left[at, at], left[at + 1 :, at]
        square = (below * below).sum()
        done = square == 0
        norm = (first * first + square).sqrt()
        image = torch.where(first >= 0, -norm, norm)
        factor = torch.where(done, 0.0, 1 - first / torch.where(done, 1.0, image))
        tail = below / torch.where(done, 1.0, first - image)
        unit = torch.eye(at + 1, dtype=matrix.dtype, device=matrix.device)[-1]
        normal = torch.cat([unit, tail])[:, None]
        reflections.append((normal, factor))
        left = left - factor * normal @ (normal.T @ left)
    made = torch.eye(rows, columns, dtype=matrix.dtype, device=matrix.device)
    for normal, factor in reversed(reflections):
        made = made - factor * normal @ (normal.T @ made)
    return made, left[:columns].triu()


def _inlined(graph: fx.Graph, node: fx.Node, matrix: fx.Node) -> list[fx.Node]:
    """Add what makes Q and R in front of a node, and return both."""
    value = matrix.meta["val"]
    example = torch.zeros(value.shape, dtype=value.dtype)
    traced = make_fx(orthogonal)(example)
    made: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                made[inner] = matrix
            elif inner.op == "call_function":
                made[inner] = graph.node_copy(inner, made.__getitem__)
                infer([made[inner]])
    (outputs,) = traced.graph.output_node().args
    assert isinstance(outputs, list | tuple)
    return [made[output] for output in outputs if isinstance(output, fx.Node)]
