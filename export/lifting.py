"""Prepare a bucket's graph for engines: windows as blocks, weights as inputs, standard operators.

What ONNX and Torch-TensorRT are both lowered from.
"""

import torch
from torch import fx

from ditc.passes.base import Pass, run
from ditc.passes.graphs import copy_module, weight
from ditc.passes.program import Program
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.scheduling import Bucket
from ditc.runtime.errors import PassError

from .blocks import MOST_SCORES
from .cast_weights import CastWeights
from .choose_by_logic import ChooseByLogic
from .drop_squeezes import DropSqueezes
from .expand_masks import ExpandMasks
from .fold_constants import FoldConstants
from .lower_windows import LowerWindows
from .lowered import Source
from .plugin_windows import PluginWindows
from .site_names import mark_sites
from .split_complex import SplitComplex
from .tensors import NAMES, constant_name, raw_bytes
from .transpose_weights import TransposeWeights
from .write_out_qr import WriteOutQr

__all__ = ["INLINE_BYTES", "interface", "lift", "lift_constants", "standardised"]

INLINE_BYTES = 1024
"""Constants up to this size stay in the graph's file."""
CASTS = ("float16", "bfloat16", "float32")
"""What weights are cast to where they are stored, as their names say."""


def _pipeline(windows: Pass) -> tuple[Pass, ...]:
    return (
        WriteOutQr(),
        FoldConstants(),
        SplitComplex(),
        ChooseByLogic(),
        windows,
        DropSqueezes(),
        ExpandMasks(),
        CastWeights(),
        TransposeWeights(),
        RemoveDeadCode(),
    )


def interface(bucket: Bucket) -> tuple[list[str], list[str]]:
    """Return the names of a bucket's inputs and outputs, slots behind the program's own."""
    inputs = [*bucket.program.arguments, *(slot.name for slot in bucket.reads)]
    outputs = [*bucket.program.outputs, *(slot.name for slot in bucket.writes)]
    return inputs, outputs


def standardised(
    graph_module: fx.GraphModule,
    program: Program,
    most_scores: int = MOST_SCORES,
    kernel: int | None = None,
) -> fx.GraphModule:
    """Return a copy of a program's graph in which no operator is ours, but for a plugin's calls.

    Args:
        graph_module: the graph.
        program: whose weights and sites it has.
        most_scores: scores that one attention over a window's blocks may hold.
        kernel: capability of the GPU, as 89, whose window kernel computes windows as a plugin;
            None for blocks.
    """
    module = copy_module(graph_module)
    mark_sites(module.graph, program)
    windows = LowerWindows(most_scores) if kernel is None else PluginWindows(kernel)
    run(_pipeline(windows), module)
    return module


def lift(module: fx.GraphModule, program: Program) -> dict[str, Source]:
    """Turn weights into inputs, behind all others, and return where each comes from, in order.

    So no value of a weight can be folded into the graph. Constants named after their content
    stay.
    """
    lifted: dict[str, fx.Node] = {}
    sources: dict[str, Source] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        target = str(node.target)
        source = _source(target, program)
        if source is None:
            continue
        sources[target] = source
        _become_input(node, target, lifted)
    module.recompile()
    return sources


def lift_constants(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Turn constants above `INLINE_BYTES` into inputs, behind all others, and return them.

    In the inputs' order, named after their content.
    """
    lifted: dict[str, fx.Node] = {}
    constants: dict[str, torch.Tensor] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        value = weight(module, str(node.target)).detach().contiguous()
        if value.nbytes <= INLINE_BYTES:
            continue
        name = constant_name(value.shape, NAMES[value.dtype], raw_bytes(value))
        constants[name] = value
        _become_input(node, name, lifted)
    module.recompile()
    return constants


def _become_input(node: fx.Node, name: str, lifted: dict[str, fx.Node]) -> None:
    """Replace a `get_attr` by the input of a name, which is added unless it is there."""
    graph = node.graph
    if name not in lifted:
        inputs = graph.find_nodes(op="placeholder")
        with graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before():
            lifted[name] = graph.placeholder(f"lifted_{len(inputs)}")
        lifted[name].meta["val"] = node.meta["val"]
    node.replace_all_uses_with(lifted[name])
    graph.erase_node(node)


def _source(target: str, program: Program) -> Source | None:
    """Return where a tensor of a lowered module comes from, None for a constant made here."""
    plain = target.removesuffix("_transposed")
    for dtype in (None, *CASTS):
        known = plain if dtype is None else plain.removesuffix(f"_{dtype}")
        for name, transposed in ((target, False), (known, plain != target)):
            if _has_weight(program, name):
                return Source(name, transposed, dtype if name == known else None)
    return None


def _has_weight(program: Program, name: str) -> bool:
    try:
        weight(program.graph_module, name)
    except PassError:
        return False
    return True
