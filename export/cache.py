"""The engine cache: lowered graphs and engines by content, shared by all builds of a user.

A key is a digest of all that a graph is made from: the program, what the bucket does to it, the
target, the code of this compiler and of those it calls. A file is written beside its place and
renamed into it, so that a build that is killed leaves whole files only, and builds that share the
cache don't disturb each other.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from ditc import passes
from ditc.runtime.errors import LoweringError

from . import engine_file
from .engine_file import EngineFile
from .lowered import Lowered, pack, unpack

__all__ = ["EngineCache", "default_cache", "key_of"]

TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript")
GRAPH, ENGINE = ".lowered", ".engine"
"""Ends of the names of files that hold a lowered graph, and a built engine."""
STALE_SECONDS = 3600.0
LARGEST_BYTES = 2**31
Kept = TypeVar("Kept")


def default_cache() -> Path:
    """Return the user's cache folder: `$XDG_CACHE_HOME/ditc`, or `~/.cache/ditc`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ditc"


def key_of(*parts: object) -> str:
    """Return the key of what these parts and this compiler make."""
    text = "\n".join((compiler_digest(), *(str(part) for part in parts)))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def compiler_digest() -> str:
    """Return a digest of this compiler's own code and of the versions of what it calls."""
    found = hashlib.sha256()
    for folder in (*passes.__path__, str(Path(__file__).parent)):
        for path in sorted(Path(folder).glob("*.py")):
            found.update(path.name.encode() + path.read_bytes())
    for name in TOOLS:
        with suppress(PackageNotFoundError):
            found.update(f"{name} {version(name)}".encode())
    return found.hexdigest()


class EngineCache:
    """Lowered graphs and engines on disk.

    Args:
        folder: where; made if it isn't there.

    Raises:
        LoweringError: if it can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise self._failed(error) from error

    def get(self, key: str) -> Lowered | None:
        """Return the graph of that key; None if it isn't there, or damaged: then it is removed."""
        return self._read(key, GRAPH, unpack)

    def put(self, key: str, lowered: Lowered) -> None:
        """Keep a graph under a key: whole, or not at all."""
        self._write(key, GRAPH, pack(lowered))

    def get_engine(self, key: str) -> EngineFile | None:
        """Return the engine of that key; None if it isn't there, or damaged: then it is removed."""
        return self._read(key, ENGINE, engine_file.unpack)

    def put_engine(self, key: str, engine: EngineFile) -> None:
        """Keep an engine under a key: whole, or not at all."""
        self._write(key, ENGINE, engine_file.pack(engine))

    def _read(
        self, key: str, suffix: str, opened: Callable[[bytes, str], Kept | None]
    ) -> Kept | None:
        path = self.folder / f"{key}{suffix}"
        try:
            raw = path.read_bytes()
            os.utime(path)  # the least recently used goes first
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(error) from error
        found = opened(raw, str(path))
        if found is None:
            path.unlink(missing_ok=True)
        return found

    def _write(self, key: str, suffix: str, content: bytes) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(name).replace(self.folder / f"{key}{suffix}")
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._failed(error) from error

    def _sweep(self) -> None:
        """Remove what killed builds left, and the least recently used beyond 2 GiB."""
        now = time.time()
        for path in self.folder.glob(".*.part"):
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
        kept = 0
        for path, size in _newest_first(
            [path for suffix in (GRAPH, ENGINE) for path in self.folder.glob(f"*{suffix}")]
        ):
            kept += size
            if kept > LARGEST_BYTES:
                path.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> LoweringError:
        return LoweringError(
            f"cache {self.folder}: {error.strerror or error}: name another folder with cache="
        )


def _newest_first(paths: Sequence[Path]) -> list[tuple[Path, int]]:
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime, path, stat.st_size))
    return [(path, size) for _, path, size in sorted(found, reverse=True)]
