"""The weight store: every tensor of every bucket once, in one safetensors file.

It is written tensor by tensor, each read when it is its turn and dropped when it is written, so
that no more than one is held, however large the model is.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ditc.passes.graphs import weight
from ditc.passes.program import Program
from ditc.passes.sizes import nbytes
from ditc.runtime.errors import LoweringError
from ditc.runtime.manifest import FileInfo

from .lowered import Lowered, Source
from .tensors import NAMES, raw_bytes

__all__ = ["Entry", "Store", "entries", "merge", "write_store"]


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor to be stored.

    Attributes:
        shape: it has in the store.
        dtype: it has in the store.
        read: gives it; called once, when it is written.
        held: what it is made from, which may not be loaded.
        source: how it is made from that, None where it is that itself.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    held: torch.Tensor | None = None
    source: Source | None = None

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return nbytes(self.shape, self.dtype)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Entry":
        """Return a tensor that is there already as an entry."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor, tensor)

    @classmethod
    def made(cls, source: Source, program: Program) -> "Entry":
        """Return a weight of a program as an entry."""
        like, held = source.like(program), weight(program.graph_module, source.target)
        read = partial(source.tensor, program)
        return cls(tuple(like.shape), like.dtype, read, held, source)

    def same(self, other: "Entry") -> bool:
        """Whether two entries are of one tensor."""
        if self.source != other.source or self.held is None or other.held is None:
            return False
        if self.held is other.held:
            return True
        loaded = not (self.held.is_meta or other.held.is_meta)
        return loaded and torch.equal(self.held, other.held)


@dataclass(frozen=True)
class Store:
    """A store that was written.

    Attributes:
        places: offset and length of each tensor in the file, in bytes.
        file: size and SHA-256 of the file.
    """

    places: Mapping[str, tuple[int, int]]
    file: FileInfo


def merge(parts: Iterable[Mapping[str, Entry]]) -> dict[str, Entry]:
    """Return what all buckets store, each name once, sorted by name.

    Raises:
        LoweringError: if two buckets use one name for different tensors.
    """
    merged: dict[str, Entry] = {}
    for part in parts:
        for name, entry in part.items():
            if not merged.setdefault(name, entry).same(entry):
                raise LoweringError(f"weight {name} differs between buckets")
    return dict(sorted(merged.items()))


def entries(lowered: Lowered, program: Program) -> dict[str, Entry]:
    """Return what a graph refers to, of the program it was made from."""
    return {
        **{name: Entry.made(source, program) for name, source in lowered.weights.items()},
        **{name: Entry.of(value) for name, value in lowered.constants.items()},
    }


def write_store(tensors: Mapping[str, Entry], path: Path) -> Store:
    """Write tensors, one after the other.

    Raises:
        LoweringError: if a dtype has no place in such a file, or a tensor isn't what its entry
            says.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, places = _header({name: tensors[name] for name in order})
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for name in order:
            raw = _raw(name, tensors[name])
            digest.update(raw)
            file.write(raw)
    size = len(header) + sum(entry.nbytes for entry in tensors.values())
    return Store(places, FileInfo(digest.hexdigest(), size))


def _header(tensors: Mapping[str, Entry]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the first bytes of the file, and the place of each tensor behind them."""
    fields: dict[str, object] = {}
    start = 0
    for name, entry in tensors.items():
        if entry.dtype not in NAMES:
            raise LoweringError(f"weight {name} is {entry.dtype}, which a store can't hold")
        fields[name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    places, at = {}, len(header)
    for name, entry in tensors.items():
        places[name] = (at, entry.nbytes)
        at += entry.nbytes
    return header, places


def _raw(name: str, entry: Entry) -> memoryview:
    tensor = entry.read()
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise LoweringError(
            f"weight {name} is {tensor.dtype} {list(tensor.shape)}, expected {entry.dtype} "
            f"{list(entry.shape)}"
        )
    return raw_bytes(tensor)
