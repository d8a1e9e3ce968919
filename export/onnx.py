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

from ditc.passes.counting import multiply_adds
from ditc.passes.program import Program
from ditc.passes.scheduling import Bucket
from ditc.runtime.errors import LoweringError

from .blocks import MOST_SCORES
from .lifting import INLINE_BYTES, interface, lift, standardised
from .lowered import Lowered, Source
from .plugin_windows import as_onnx_nodes
from .references import point_at
from .simplify import simplify
from .site_names import name_attentions, sites_of
from .stripping import strip
from .tensors import constant_name

__all__ = ["OPSET", "lower", "lower_graph", "save"]

OPSET = 23
"""First opset with `Attention`, which engines have dedicated kernels for."""
NOWHERE = "store"
"""Where weights lie until they have a place in a bundle."""


def lower(bucket: Bucket, most_scores: int = MOST_SCORES, kernel: int | None = None) -> Lowered:
    """Lower a bucket's graph.

    Args:
        bucket: whose graph.
        most_scores: scores that one attention over a window's blocks may hold.
        kernel: capability of the GPU, as 89, whose window kernel computes windows as a plugin of
            TensorRT; None for blocks.

    Raises:
        LoweringError: naming the bucket, if an operator has no ONNX counterpart.
    """
    inputs, outputs = interface(bucket)
    where = f"bucket {bucket.name}"
    return lower_graph(
        bucket.graph_module, inputs, outputs, bucket.program, where, most_scores, kernel
    )


def lower_graph(
    graph_module: fx.GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    program: Program,
    where: str,
    most_scores: int = MOST_SCORES,
    kernel: int | None = None,
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
        kernel: as for `lower`.

    Raises:
        LoweringError: if an operator has no ONNX counterpart.
    """
    module = standardised(graph_module, program, most_scores, kernel)
    as_onnx_nodes(module)
    weights = lift(module, program)
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
