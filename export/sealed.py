"""Tensors and a record as one safetensors file that holds its own digest: as caches keep things."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from .tensors import raw_bytes

__all__ = ["bytes_of", "seal", "tensor_of", "unseal"]

Kept = TypeVar("Kept")

SEAL = "sealed"
"""Key of the metadata: the digest's digits, then the record as JSON."""
DIGITS = 64


def seal(tensors: Mapping[str, torch.Tensor], record: Mapping[str, object]) -> bytes:
    """Return tensors, each in memory of its own, and what goes with them as one file's content.

    The same content gives the same bytes: safetensors orders several entries of metadata by
    chance, so there is one.
    """
    text = json.dumps(record, sort_keys=True)
    packed: bytes = save(dict(tensors), {SEAL: _digest(tensors, text) + text})
    return packed


def unseal(
    raw: bytes, path: str, read: Callable[[dict[str, torch.Tensor], dict[str, Any]], Kept]
) -> Kept | None:
    """Return what `read` makes of what `seal` wrote, None if it is damaged or of another form.

    Args:
        raw: the file's content.
        path: the file, whose header is read from there.
        read: given the tensors and the record.
    """
    try:
        tensors = load(raw)
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        digest, text = meta[SEAL][:DIGITS], meta[SEAL][DIGITS:]
        return read(tensors, json.loads(text)) if digest == _digest(tensors, text) else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def tensor_of(content: bytes) -> torch.Tensor:
    """Return bytes as a tensor."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return what `tensor_of` was given."""
    return tensor.numpy().tobytes()


def _digest(tensors: Mapping[str, torch.Tensor], record: str) -> str:
    found = hashlib.sha256(record.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(raw_bytes(value))
    return found.hexdigest()
