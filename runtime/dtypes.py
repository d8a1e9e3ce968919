"""Dtypes by name, bfloat16 among them, which numpy hasn't: its numbers are carried as raw bits."""

import numpy as np

__all__ = ["BFLOAT16", "ONNX_BFLOAT16", "array_dtype", "bits", "onnx_type"]

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Two bytes a number under a name of their own: no arithmetic takes them for integers."""
ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16`."""


def array_dtype(name: str) -> np.dtype[np.generic]:
    """Return the dtype of arrays that hold numbers of the named one."""
    return BFLOAT16 if name == BFLOAT16.names[0] else np.dtype(name)  # type: ignore[index]


def onnx_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic] | int:
    """Return what ONNX Runtime calls a dtype: numpy's own, or a number where numpy has none."""
    return ONNX_BFLOAT16 if dtype == BFLOAT16 else dtype


def bits(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> object:
    """Return an array as ONNX Runtime takes it: raw bits as unsigned integers."""
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array
