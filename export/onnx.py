"""Lower a bucket's graph to ONNX: standard operators, weights referred to, not held."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ditc.passes.base import Pass, run
from ditc.passes.counting import multiply_adds
from ditc.passes.graphs import copy_module, weight
from ditc.passes.program import Program
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.scheduling import Bucket
from ditc.runtime.errors import LoweringError, PassError

from .blocks import MOST_SCORES
from .cast_weights import CastWeights
from .choose_by_logic import ChooseByLogic
from .drop_squeezes import DropSqueezes
from .expand_masks import ExpandMasks
from .fold_constants import FoldConstants
from .lower_windows import LowerWindows
from .lowered import Lowered, Source
from .references import point_at
from .simplify import simplify
from .site_names import mark_sites, name_attentions, sites_of
from .split_complex import SplitComplex
from .stripping import strip
from .tensors import constant_name
from .transpose_weights import TransposeWeights

__all__ = ["OPSET", "lower", "lower_graph", "save"]

OPSET = 23
"""First opset with `Attention`, which engines have dedicated kernels for."""
NOWHERE = "store"
"""Where weights lie until they have a place in a bundle."""
INLINE_BYTES = 1024
"""Constants up to this size stay in the graph's file."""
CASTS = ("float16", "bfloat16", "float32")
"""What weights are cast to where they are stored, as their names say."""


def _pipeline(most_scores: int) -> tuple[Pass, ...]:
    return (
        FoldConstants(),
        SplitComplex(),
        ChooseByLogic(),
        LowerWindows(most_scores),
        DropSqueezes(),
        ExpandMasks(),
        CastWeights(),
        TransposeWeights(),
        RemoveDeadCode(),
    )


def lower(bucket: Bucket, most_scores: int = MOST_SCORES) -> Lowered:
    """Lower a bucket's graph.

    Args:
        bucket: whose graph.
        most_scores: scores that one attention over a window's blocks may hold.

    Raises:
        LoweringError: naming the bucket, if an operator has no ONNX counterpart.
    """
    program = bucket.program
    inputs = [*program.arguments, *(slot.name for slot in bucket.reads)]
    outputs = [*program.outputs, *(slot.name for slot in bucket.writes)]
    where = f"bucket {bucket.name}"
    return lower_graph(bucket.graph_module, inputs, outputs, program, where, most_scores)


def lower_graph(
    graph_module: fx.GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    program: Program,
    where: str,
    most_scores: int = MOST_SCORES,
) -> Lowered:
    """Lower a graph of a program.

    The values of weights don't enter: equal graphs give equal bytes, whatever the weights hold.

    Args:
        graph_module: the graph; it is copied.
        inputs: names for its inputs, in order.
        outputs: names for its outputs, in order.
        program: whose weights it uses.
        where: what to call it in messages.
        most_scores: as for `lower`.

    Raises:
        LoweringError: if an operator has no ONNX counterpart.
    """
    module = copy_module(graph_module)
    mark_sites(module.graph, program)
    run(_pipeline(most_scores), module)
    weights = _lift(module, program)
    model = _translate(where, module)
    constants = _constants(model)
    used = _refer(model, weights, inputs, outputs)
    _rename(model, inputs, outputs)
    name_attentions(model, sites_of(module.graph))
    strip(model)
    return Lowered(
        graph=onnx_ir.to_proto(model).SerializeToString(deterministic=True),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        weights=used,
        constants=constants,
        multiply_adds=multiply_adds(graph_module.graph),
    )


def save(lowered: Lowered, path: Path, store: str, placed: Mapping[str, tuple[int, int]]) -> None:
    """Write a graph that refers into the store, which lies in the same folder.

    Args:
        lowered: the graph.
        path: file to write.
        store: file name of the weight store.
        placed: offset and length of each weight in the store, in bytes.

    Raises:
        LoweringError: if ONNX's own checker refuses the model.
    """
    model = onnx.ModelProto.FromString(lowered.graph)
    point_at(model, store, placed)
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"{path.name}: refused by onnx.checker: {error}") from error


def _lift(module: fx.GraphModule, program: Program) -> dict[str, Source]:
    """Turn weights into inputs, behind all others, and return where each comes from, in order.

    So no value of a weight can be folded into the graph. Constants named after their content
    stay.
    """
    graph = module.graph
    lifted: dict[str, fx.Node] = {}
    sources: dict[str, Source] = {}
    for node in list(graph.find_nodes(op="get_attr")):
        target = str(node.target)
        source = _source(target, program)
        if source is None:
            continue
        if target not in lifted:
            inputs = graph.find_nodes(op="placeholder")
            with graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before():
                lifted[target] = graph.placeholder(f"lifted_{len(lifted)}")
            lifted[target].meta["val"] = node.meta["val"]
            sources[target] = source
        node.replace_all_uses_with(lifted[target])
        graph.erase_node(node)
    module.recompile()
    return sources


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


def _translate(where: str, module: fx.GraphModule) -> onnx_ir.Model:
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    with FakeTensorMode(allow_non_fake_inputs=True):
        example = tuple(torch.empty(value.shape, dtype=value.dtype) for value in values)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(module, example, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
            assert program is not None
            model: onnx_ir.Model = program.model
            simplify(model)
    except Exception as error:  # the exporter raises whatever a translation ran into
        raise LoweringError(f"{where}: can't be expressed in ONNX: {_reason(error)}") from error
    return model


def _reason(error: BaseException) -> str:
    """Return the first line of what an error goes back to; those around it tell of the tool."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on optional packages away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _constants(model: onnx_ir.Model) -> dict[str, torch.Tensor]:
    """Name constants after their content, and take the larger ones out of the graph."""
    constants: dict[str, torch.Tensor] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        name = _name_by_content(model, value, tensor)
        if tensor.nbytes > INLINE_BYTES and name not in constants:
            constants[name] = _as_torch(tensor)
            model.graph.initializers[name].const_value = _elsewhere(name, tensor)
    return constants


def _as_torch(tensor: onnx_ir.TensorProtocol) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, tensor.dtype.numpy().name)
    return torch.frombuffer(bytearray(tensor.tobytes()), dtype=dtype).reshape(tensor.shape.numpy())


def _refer(
    model: onnx_ir.Model,
    weights: Mapping[str, Source],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> dict[str, Source]:
    """Turn the inputs behind those stated into references to weights; return those in use."""
    graph = model.graph
    lifted = list(graph.inputs)[len(inputs) :]
    del graph.inputs[len(inputs) :]
    used: dict[str, Source] = {}
    for value, (target, source) in zip(lifted, weights.items(), strict=True):
        if not value.uses():
            continue
        value.name = f"{target}_weight" if target in (*inputs, *outputs) else target
        value.const_value = _elsewhere(value.name, value)
        graph.register_initializer(value)
        used[value.name] = source
    return used


def _elsewhere(name: str, like: onnx_ir.TensorProtocol | onnx_ir.Value) -> onnx_ir.ExternalTensor:
    assert isinstance(like.shape, onnx_ir.Shape)
    assert like.dtype is not None
    return onnx_ir.ExternalTensor(NOWHERE, None, None, like.dtype, shape=like.shape, name=name)


def _rename(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name inputs and outputs as stated, all between by their order: equal graphs, equal bytes."""
    taken = {*inputs, *outputs, *model.graph.initializers}
    fresh = (name for number in count() if (name := f"v{number}") not in taken)
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"n{number}"
        for value in node.outputs:
            value.name = next(fresh)
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    model.graph.name = "denoiser"


def _name_by_content(
    model: onnx_ir.Model, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol
) -> str:
    """Rename a constant after its content; where the graph has that one already, use it."""
    initializers = model.graph.initializers
    name = constant_name(tensor.shape.numpy(), tensor.dtype.name, tensor.tobytes())
    if name not in initializers:
        value.name = name
    elif initializers[name] is not value:
        assert value.name is not None
        value.replace_all_uses_with(initializers[name])
        del initializers[value.name]
    return name
