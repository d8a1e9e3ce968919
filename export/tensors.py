"""Tensors as files hold them: raw bytes, and names of dtypes."""

import hashlib
from collections.abc import Iterable

import torch

from ditc.runtime import weights

__all__ = ["DTYPES", "NAMES", "constant_name", "raw_bytes"]

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, kind) for name, kind in weights.DTYPES.items()
}
"""Dtypes by their names in the safetensors format."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes in C order, little-endian; no copy if it lies so already."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def constant_name(shape: Iterable[int], dtype: str, content: bytes | memoryview) -> str:
    """Return a name made from a constant's content, the same wherever the same is folded."""
    sizes = "x".join(str(size) for size in shape)
    digest = hashlib.sha256(dtype.encode() + bytes(content)).hexdigest()
    return f"constant_{sizes}_{digest[:12]}"
