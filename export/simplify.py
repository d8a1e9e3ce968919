"""Simplify an ONNX graph: fold constants, drop what nobody uses, compute what is equal once."""

import onnx_ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

__all__ = ["simplify"]


def simplify(model: onnx_ir.Model) -> None:
    """Simplify a model in place.

    Of what the exporter's own optimizer does, the patterns it looks for are left out: graphs come
    without them, and looking for them at every node takes longer than all else of lowering.
    """
    common.InlinePass()(model)
    for _ in range(2):
        if not fold_constants(model).modified:
            break
        common.RemoveUnusedNodesPass()(model)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        tidy(model)
