"""Map a safetensors file into memory: tensors whose pages are the file's own, shared and lazy."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .dtypes import array_dtype
from .errors import BundleError
from .fields import load_json, read_integer, read_list, read_object, read_shape, read_string
from .files import WEIGHTS_FILE
from .manifest import Manifest

__all__ = ["DTYPES", "check_weights", "map_tensors"]

Array = npt.NDArray[np.generic]
MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Dtypes by their names in the safetensors format."""


def map_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file by name, read-only views of one memory map.

    The format: 8 bytes of header length, little-endian; the header, JSON; the tensors' bytes.

    Raises:
        BundleError: if the file isn't a sound safetensors file, or holds a dtype unknown here.
    """
    header, start = _read_header(path)
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        dtype, shape, first, last = _read_entry(
            entry, f"{path}: tensor {name!r}", data.size - start
        )
        raw = data[start + first : start + last]
        tensors[name] = raw.view(dtype).reshape(shape)
    return tensors


def check_weights(manifest: Manifest, weights: Mapping[str, Array]) -> None:
    """Refuse a store that lacks a weight.

    Raises:
        BundleError: naming the graph and the weight.
    """
    for graph in manifest.graphs:
        for name in graph.weights:
            if name not in weights:
                raise BundleError(
                    f"bucket {graph.name!r}: uses the weight {name!r}, which isn't among the "
                    f"{len(weights)} in {WEIGHTS_FILE}; compile the bundle again"
                )


def _read_header(path: Path) -> tuple[Mapping[str, object], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BundleError(
                f"{path}: says its header has {length} bytes and has {size} itself; it is no "
                "safetensors file, copy or compile the bundle again"
            )
        text = file.read(length).decode(errors="replace")
    header = load_json(text, f"{path}: the header")
    if not isinstance(header, dict):
        raise BundleError(f"{path}: the header is {json.dumps(header)[:40]}, expected an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _read_entry(
    entry: object, where: str, size: int
) -> tuple[np.dtype[np.generic], tuple[int, ...], int, int]:
    found = read_object(entry, where, ("dtype", "shape", "data_offsets"))
    kind = read_string(found["dtype"], where)
    if kind not in DTYPES:
        raise BundleError(f"{where}: has dtype {kind}, expected one of {', '.join(DTYPES)}")
    dtype = array_dtype(DTYPES[kind])
    shape = read_shape(found["shape"], where)
    offsets = read_list(
        found["data_offsets"], where, lambda item, place: read_integer(item, place, 0, size)
    )
    expected = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise BundleError(
            f"{where}: has the data offsets {list(offsets)}, expected {expected} bytes"
        )
    return dtype, shape, offsets[0], offsets[1]
