"""Checkpoints on disk, read tensor by tensor, and models that have nothing but their shapes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ditc.passes.unloaded import unloaded_like
from ditc.runtime.errors import CaptureError, LoweringError

from .tensors import DTYPES

__all__ = ["Checkpoint", "empty_model"]

INDEX = "*.safetensors.index.json"


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: file, first byte, length, and what it is."""

    path: Path
    start: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Stamp:
    """What tells that a file is still the same."""

    size: int
    changed_ns: int
    header_sha256: str


class Checkpoint:
    """The tensors of safetensors files, none of them held.

    Args:
        path: a file; or the index of several (`*.index.json`); or a folder that holds either.

    Raises:
        CaptureError: if there are none, or they can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._places: dict[str, _Place] = {}
        self._stamps: dict[Path, _Stamp] = {}
        for file in _files(self.path):
            self._places.update(_places(file))
            self._stamps[file] = _stamp(file)

    def __repr__(self) -> str:
        """Return where it lies and how much it is."""
        return f"Checkpoint({str(self.path)!r}: {len(self._places)} tensors, {self.nbytes} bytes)"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Dtype of every tensor, by name."""
        return {name: place.dtype for name, place in self._places.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.nbytes for place in self._places.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, read from its file.

        Raises:
            LoweringError: if there is none of that name, or its file was cut short.
        """
        place = self._places.get(name)
        if place is None:
            raise LoweringError(f"{self.path}: has no tensor {name}")
        raw = torch.empty(place.nbytes, dtype=torch.uint8)
        try:
            with place.path.open("rb") as file:
                file.seek(place.start)
                count = file.readinto(raw.numpy().data)
        except OSError as error:
            raise LoweringError(f"{place.path}: can't be read: {error}") from error
        if count != place.nbytes:
            raise _changed(place.path)
        return raw.view(place.dtype).reshape(place.shape)

    def sha256(self) -> str:
        """Return the SHA-256 of the file; of several, of a line each with its digest and name."""
        digests = {path.name: _digest(path) for path in self._stamps}
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def check(self) -> None:
        """Check that the files are those that were there when this was made.

        Raises:
            LoweringError: naming the one that changed.
        """
        for path, stamp in self._stamps.items():
            try:
                now = _stamp(path)
            except (OSError, SafetensorError, CaptureError) as error:
                raise _changed(path) from error
            if now != stamp:
                raise _changed(path)


def _changed(path: Path) -> LoweringError:
    return LoweringError(
        f"{path}: changed since the model was captured: capture and compile again, and leave the "
        "file alone meanwhile"
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return _indexed(path) if path.name.endswith(".index.json") else [path]
    if not path.is_dir():
        raise CaptureError(f"{path}: is neither a safetensors file nor a folder with any")
    indices, files = sorted(path.glob(INDEX)), sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return _indexed(indices[0])
    if len(files) == 1 and not indices:
        return files
    found = [entry.name for entry in (indices or files)]
    raise CaptureError(
        f"{path}: expected one safetensors file or one index of several, found "
        f"{', '.join(found) or 'none'}: name the file"
    )


def _indexed(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({index.parent / Path(name).name for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptureError(f"{index}: is no index of safetensors files: {error}") from error
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise CaptureError(f"{index}: names {missing[0].name}, which isn't there")
    return files


def _places(path: Path) -> Iterator[tuple[str, _Place]]:
    try:
        with safe_open(path, "pt") as file:  # refuses files that aren't sound
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CaptureError(f"{path}: can't be read as safetensors: {error}") from error
    raw = _header(path)
    header = json.loads(raw)
    for name in names:
        kind, shape = header[name]["dtype"], header[name]["shape"]
        if kind not in DTYPES:
            raise CaptureError(f"{path}: {name} is {kind}, expected {', '.join(DTYPES)}")
        first, last = header[name]["data_offsets"]
        start = 8 + len(raw) + first
        yield name, _Place(path, start, last - first, DTYPES[kind], tuple(shape))


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return _Stamp(stat.st_size, stat.st_mtime_ns, hashlib.sha256(_header(path)).hexdigest())


def empty_model(make: Callable[[], torch.nn.Module], checkpoint: Checkpoint) -> torch.nn.Module:
    """Make a model whose parameters, and what else the checkpoint holds, aren't loaded.

    Buffers that the checkpoint doesn't hold, as tables of positions, are as the model makes them.

    Args:
        make: makes the model, in the dtypes it shall be captured in.
        checkpoint: must hold every parameter, in whatever dtype.

    Returns:
        The model in eval mode, for `capture(..., weights=checkpoint)`.

    Raises:
        CaptureError: if a parameter isn't there, or of another shape.
    """
    with _unloaded_parameters():
        module = make().eval()
    shapes = checkpoint.shapes
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for part_name, part in module.named_modules(remove_duplicate=False):
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                path = f"{part_name}.{name}" if part_name else name
                if tensor is None or (path in buffers and path not in shapes):
                    continue
                _check_shape(checkpoint, path, tensor)
                held[name] = _unloaded(tensor)
    return module


def _check_shape(checkpoint: Checkpoint, name: str, like: torch.Tensor) -> None:
    found = checkpoint.shapes.get(name)
    if found is None:
        raise CaptureError(f"{checkpoint.path}: lacks {name}, which the model has")
    if found != tuple(like.shape):
        raise CaptureError(
            f"{checkpoint.path}: {name} is {list(found)}, the model has {list(like.shape)}"
        )


def _unloaded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else unloaded_like(tensor)


@contextmanager
def _unloaded_parameters() -> Iterator[None]:
    """Put every parameter that a module is given on the meta device, before it is initialised.

    Memory that nobody wrote to takes no room, and initialising a meta tensor takes no time.
    """
    register = torch.nn.Module.register_parameter

    def registering(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        kept = None if param is None else _unloaded(param)
        assert kept is None or isinstance(kept, torch.nn.Parameter)
        register(module, name, kept)

    torch.nn.Module.register_parameter = registering  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
