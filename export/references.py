"""Point a graph's weights at their places in a store."""

from collections.abc import Mapping

import onnx

__all__ = ["point_at"]


def point_at(model: onnx.ModelProto, store: str, places: Mapping[str, tuple[int, int]]) -> None:
    """Tell each initializer that isn't in the graph where it lies.

    Args:
        model: changed in place.
        store: file name of the weight store, in the graph's folder.
        places: offset and length of each weight in the store, in bytes.
    """
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        offset, length = places[tensor.name]
        del tensor.external_data[:]
        for key, value in (("location", store), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
