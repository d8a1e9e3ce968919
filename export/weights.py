"""The weight store: every tensor of every bucket once, in one safetensors file."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ditc.runtime.errors import LoweringError

__all__ = ["Placed", "merge", "write_store"]


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies in the store: bytes from the start of the file, and its shape."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]


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


def write_store(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, Placed]:
    """Write tensors and return where each lies."""
    owned = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file({name: _unshared(tensor) for name, tensor in owned.items()}, path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    start = 8 + length
    return {
        name: Placed(
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _unshared(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor that is part of a larger storage; the file format wants them apart."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
