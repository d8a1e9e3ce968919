"""Lower a bucket's graph to ONNX: standard operators, weights referred to, not held."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import fx

from ditc.passes.base import run
from ditc.passes.graphs import copy_module, weight
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.scheduling import Bucket
from ditc.runtime.errors import LoweringError

from .drop_squeezes import DropSqueezes
from .expand_masks import ExpandMasks
from .fold_constants import FoldConstants
from .lower_windows import LowerWindows
from .transpose_weights import TransposeWeights
from .weights import constant_name

__all__ = ["OPSET", "Lowered", "lower", "save"]

OPSET = 23
"""First opset with `Attention`, which engines have dedicated kernels for."""
INLINE_BYTES = 1024
"""Constants up to this size stay in the graph's file."""
PIPELINE = (
    FoldConstants(),
    LowerWindows(),
    DropSqueezes(),
    ExpandMasks(),
    TransposeWeights(),
    RemoveDeadCode(),
)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A bucket as an ONNX model whose larger initializers await their place in the store.

    Attributes:
        model: the model; inputs and outputs are named as the program's, then as slots.
        weights: tensors it refers to, by name, in the layout the graph wants.
    """

    model: onnx_ir.Model
    weights: Mapping[str, torch.Tensor]


def lower(bucket: Bucket) -> Lowered:
    """Lower a bucket's graph.

    Raises:
        LoweringError: naming the bucket, if an operator has no ONNX counterpart.
    """
    module = copy_module(bucket.graph_module)
    run(PIPELINE, module)
    model = _translate(bucket, module)
    weights = _weights(module, model)
    renamed = _name(bucket, model)
    _strip(model)
    return Lowered(model, {renamed.get(name, name): value for name, value in weights.items()})


def save(lowered: Lowered, path: Path, store: str, placed: Mapping[str, tuple[int, int]]) -> None:
    """Write a model that refers into the store, which lies in the same folder.

    Args:
        lowered: the model.
        path: file to write.
        store: file name of the weight store.
        placed: offset and length of each weight in the store, in bytes.

    Raises:
        LoweringError: if ONNX's own checker refuses the model.
    """
    for name, value in lowered.model.graph.initializers.items():
        if name not in lowered.weights:
            continue
        tensor = value.const_value
        assert tensor is not None
        offset, length = placed[name]
        value.const_value = onnx_ir.ExternalTensor(
            store,
            offset,
            length,
            tensor.dtype,
            shape=onnx_ir.Shape(lowered.weights[name].shape),
            name=name,
            base_dir=path.parent,
        )
    onnx_ir.save(lowered.model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"{path.name}: refused by onnx.checker: {error}") from error


def _translate(bucket: Bucket, module: fx.GraphModule) -> onnx_ir.Model:
    example = tuple(
        torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
        for node in module.graph.find_nodes(op="placeholder")
    )
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(module, example, strict=False)
            program = torch.onnx.export(
                exported, dynamo=True, opset_version=OPSET, optimize=True, verbose=False
            )
    except Exception as error:  # the exporter raises whatever a translation ran into
        raise LoweringError(
            f"bucket {bucket.name}: can't be expressed in ONNX: {_reason(error)}"
        ) from error
    assert program is not None
    model: onnx_ir.Model = program.model
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


def _name(bucket: Bucket, model: onnx_ir.Model) -> dict[str, str]:
    """Name inputs and outputs: the program's own, then slots. Return weights' names that change."""
    program = bucket.program
    inputs = [entry.name for entry in program.inputs] + [slot.name for slot in bucket.reads]
    outputs = [*program.outputs, *(slot.name for slot in bucket.writes)]
    renamed = _free(model, {*inputs, *outputs})
    for value, name in zip(model.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    model.graph.name = "denoiser"
    return renamed


def _free(model: onnx_ir.Model, names: set[str]) -> dict[str, str]:
    """Rename inner values that have a name which an input or output is to get."""
    renamed = {name: f"{name}_weight" for name in model.graph.initializers if name in names}
    for name, new in renamed.items():
        model.graph.initializers[name].name = new
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inner"
    return renamed


def _strip(model: onnx_ir.Model) -> None:
    """Drop what differs between machines: traces, paths, tool names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name = "ditc"
    model.producer_version = None
    model.doc_string = None
    model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _weights(module: fx.GraphModule, model: onnx_ir.Model) -> dict[str, torch.Tensor]:
    """Return the model's larger initializers: the module's own tensors, and folded constants.

    Folded constants get names made from their content, so that they are the same in all buckets.
    """
    targets = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    weights: dict[str, torch.Tensor] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes <= INLINE_BYTES:
            continue
        if name in targets:
            weights[name] = weight(module, name).detach()
            continue
        named = _name_by_content(model, value, tensor)
        weights[named] = torch.from_numpy(tensor.numpy().copy())
    return weights


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
