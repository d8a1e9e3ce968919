"""The weight store: every tensor of every bucket once, in one safetensors file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ditc.runtime.errors import LoweringError

__all__ = ["constant_name", "merge", "write_store"]


def constant_name(shape: Iterable[int], dtype: str, content: bytes) -> str:
    """Return a name made from a constant's content, the same wherever the same is folded."""
    sizes = "x".join(str(size) for size in shape)
    digest = hashlib.sha256(dtype.encode() + content).hexdigest()
    return f"constant_{sizes}_{digest[:12]}"


def merge(parts: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors of all buckets, each name once, sorted by name.

    Raises:
        LoweringError: if two buckets use one name for different tensors.
    """
    merged: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, tensor in part.items():
            known = merged.setdefault(name, tensor)
            same = known.data_ptr() == tensor.data_ptr() and known.stride() == tensor.stride()
            if not same and not torch.equal(known, tensor):
                raise LoweringError(f"weight {name} differs between buckets")
    return dict(sorted(merged.items()))


def write_store(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, tuple[int, int]]:
    """Write tensors and return each one's offset in the file and length, in bytes."""
    save_file({name: _owned(tensor) for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    places = {name: header[name]["data_offsets"] for name in tensors}
    return {name: (8 + length + first, last - first) for name, (first, last) in places.items()}


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor with a storage to itself: the file format wants them apart."""
    owned = tensor.detach().contiguous()
    whole = owned.untyped_storage().nbytes() == owned.numel() * owned.element_size()
    return owned if whole else owned.clone()
