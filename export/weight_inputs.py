"""Weights as inputs: y = x · W, W an initializer   becomes   y = x · W, W an input of the graph."""

import onnx

from ditc.runtime.errors import LoweringError

__all__ = ["with_weight_inputs"]


def with_weight_inputs(graph: bytes) -> bytes:
    """Return a lowered graph whose stored weights are inputs, behind those it had.

    An engine built from it holds no weight: what is bound to the inputs at run time is. Equal
    graphs give equal bytes.

    Args:
        graph: serialised model whose weights are external data, as `Lowered.graph`.

    Raises:
        LoweringError: if ONNX's own checker refuses the result.
    """
    model = onnx.ModelProto.FromString(graph)
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            kept.append(tensor)
            continue
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    inline = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inline)
    raw: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(raw, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"weights as inputs: refused by onnx.checker: {error}") from error
    return raw
