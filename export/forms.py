"""What graphs are lowered to: ONNX, or for Torch-TensorRT programs of torch.export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import fx

from ditc.passes import Bucket, Program
from ditc.runtime.errors import LoweringError
from ditc.runtime.targets import Target

from . import onnx, torch_program
from .lowered import Lowered

__all__ = ["ENGINE", "ONNX", "TORCH", "Form", "check_serves_range", "form_of"]


@dataclass(frozen=True)
class Form:
    """What graphs are lowered to.

    Attributes:
        name: in the cache's keys.
        windows: how windows are lowered, in the keys of graphs that have some.
        lower: lowers a bucket.
        lower_graph: lowers a graph, given names of its inputs and outputs, whose weights it uses,
            and what to call it in messages.
    """

    name: str
    lower: Callable[[Bucket], Lowered]
    lower_graph: Callable[[fx.GraphModule, Sequence[str], Sequence[str], Program, str], Lowered]
    windows: str = ""


ENGINE_SCORES = 2**28
"""Scores that one attention over a window's blocks may span in an engine.

Its kernels don't hold them, so there can be more than elsewhere, and fewer attentions to build;
but the keys of every block are copied.
"""
ONNX = Form("onnx", onnx.lower, onnx.lower_graph)
ENGINE = Form(
    "onnx",
    partial(onnx.lower, most_scores=ENGINE_SCORES),
    partial(onnx.lower_graph, most_scores=ENGINE_SCORES),
    "engine",
)
TORCH = Form("torch", torch_program.lower, torch_program.lower_graph)


def check_serves_range(target: Target, form: Form) -> None:
    """Refuse a range of batch sizes where graphs aren't plain ONNX.

    Raises:
        LoweringError: for Torch-TensorRT, and for windows by a kernel, which are of one size.
    """
    if form in (ONNX, ENGINE):
        return
    what = "Torch-TensorRT's engines" if form is TORCH else "engines with the window kernel"
    raise LoweringError(
        f"target {target}: {what} serve one batch size: leave dynamic out, or compile with target "
        "'tensorrt' or 'tensorrt-rtx', windows as blocks"
    )


def form_of(target: Target, kernel: int | None = None) -> Form:
    """Return what a target's engines are built from.

    Args:
        target: names it.
        kernel: capability of the GPU, as 89, whose window kernel computes windows as a plugin of
            TensorRT; None for blocks.
    """
    if kernel is not None:
        lower_graph = partial(onnx.lower_graph, kernel=kernel)
        return Form(f"onnx-kernel-{kernel}", partial(onnx.lower, kernel=kernel), lower_graph)
    if target.name == "torch-tensorrt":
        return TORCH
    return ONNX if target.name == "onnx" else ENGINE
