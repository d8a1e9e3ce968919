"""Lower a bucket's graph for Torch-TensorRT: aten operators only, as torch.export saves them.

Weights and larger constants are inputs, so that no engine holds them. What inputs, outputs and
attentions are called lies in the file beside the program.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ditc.passes.counting import multiply_adds
from ditc.passes.graphs import weight
from ditc.passes.program import Program
from ditc.passes.scheduling import Bucket
from ditc.runtime.errors import LoweringError

from .blocks import MOST_SCORES
from .lifting import interface, lift, lift_constants, standardised
from .lowered import Lowered
from .site_names import sites_of
from .torch_network import NAMES_FILE

__all__ = ["lower", "lower_graph"]

Names: TypeAlias = Mapping[str, Sequence[str | None]]


def lower(bucket: Bucket, most_scores: int = MOST_SCORES) -> Lowered:
    """Lower a bucket's graph; as `ditc.export.onnx.lower`, to a program of torch.export.

    Raises:
        LoweringError: naming the bucket, if it can't be exported.
    """
    inputs, outputs = interface(bucket)
    where = f"bucket {bucket.name}"
    return lower_graph(bucket.graph_module, inputs, outputs, bucket.program, where, most_scores)


def lower_graph(
    graph_module: fx.GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    program: Program,
    where: str,
    most_scores: int = MOST_SCORES,
) -> Lowered:
    """Lower a graph of a program; as `ditc.export.onnx.lower_graph`.

    Raises:
        LoweringError: if it can't be exported.
    """
    module = standardised(graph_module, program, most_scores)
    sources = lift(module, program)
    constants = lift_constants(module)
    lifted = _distinct([*sources, *constants], {*inputs, *outputs})
    names: Names = {
        "inputs": [*inputs, *lifted],
        "outputs": [*outputs],
        "attentions": sites_of(module.graph),
    }
    return Lowered(
        graph=_saved(_exported(where, module), names),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        weights=dict(zip(lifted, sources.values(), strict=False)),
        constants=constants,
        multiply_adds=multiply_adds(graph_module.graph),
    )


def _distinct(names: Sequence[str], taken: set[str]) -> list[str]:
    """Return weights' names, those that an input or an output has already told apart."""
    return [f"{name}_weight" if name in taken else name for name in names]


def _exported(where: str, module: fx.GraphModule) -> torch.export.ExportedProgram:
    module = _bare(module)
    for node in module.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    with FakeTensorMode(allow_non_fake_inputs=True):
        example = tuple(torch.empty(value.shape, dtype=value.dtype) for value in values)
    try:
        with torch.no_grad():
            return torch.export.export(module, example, strict=False)
    except Exception as error:  # torch.export raises whatever an operator ran into
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise LoweringError(f"{where}: can't be exported by torch: {reason}") from error


def _bare(module: fx.GraphModule) -> fx.GraphModule:
    """Return a module without the tensors that became inputs; those left share no memory."""
    held = {
        str(node.target): weight(module, str(node.target)).detach().clone()
        for node in module.graph.find_nodes(op="get_attr")
    }
    return fx.GraphModule(held, module.graph)


def _saved(exported: torch.export.ExportedProgram, names: Names) -> bytes:
    """Return a program as a file: no example, no trace of the code that it came from."""
    exported.example_inputs = None
    for node in exported.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={NAMES_FILE: json.dumps(names)})
    return file.getvalue()
