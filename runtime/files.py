"""The files of a bundle: paths that stay inside it, and content that is what the manifest says."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from .errors import BundleError

__all__ = [
    "CONDITIONING_FILE",
    "MANIFEST_FILE",
    "PLAN_FILE",
    "SOURCES_FILE",
    "WEIGHTS_FILE",
    "check_files",
    "check_relative",
    "check_sizes",
    "read_text",
]

MANIFEST_FILE = "manifest.json"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
SOURCES_FILE = "sources.json"
CONDITIONING_FILE = "conditioning.safetensors"

MAX_TEXT_BYTES = 2**26
AGAIN = "copy or compile the bundle again"


class _Expected(Protocol):
    @property
    def sha256(self) -> str: ...

    @property
    def bytes(self) -> int: ...


def check_relative(path: str, where: str) -> str:
    """Return `path` if it stays inside the bundle on every system: relative, normal, no "..".

    Raises:
        BundleError: if it doesn't.
    """
    parts = path.split("/")
    strange = any(mark in path for mark in ("\\", ":", "\0"))
    if strange or PurePosixPath(path).is_absolute() or any(p in ("", ".", "..") for p in parts):
        raise BundleError(
            f"{where}: the path {path!r} leaves the bundle or isn't normal, expected a relative "
            "path with forward slashes and no '..'"
        )
    return path


def read_text(root: Path, path: str) -> str:
    """Return the text of a file of a bundle, UTF-8, at most 64 MiB.

    Raises:
        BundleError: if it is missing, larger, a link, or no UTF-8.
    """
    file = _regular_file(root, path)
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise BundleError(
            f"{file}: has {file.stat().st_size} bytes, expected at most {MAX_TEXT_BYTES}"
        )
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file}: is no UTF-8 text ({error.reason}), {AGAIN}") from error


def check_files(root: Path, files: Mapping[str, _Expected]) -> None:
    """Check the size and SHA-256 of every file, sizes first since they cost nothing.

    Raises:
        BundleError: if a file is missing, a link, cut short or altered.
    """
    check_sizes(root, files)
    for path, info in files.items():
        with (root / path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != info.sha256:
            raise BundleError(
                f"{root / path}: has the SHA-256 {found}, expected {info.sha256}; it was altered, "
                f"{AGAIN}"
            )


def check_sizes(root: Path, files: Mapping[str, _Expected]) -> None:
    """Check that every file is there, with its size; none is read.

    Raises:
        BundleError: if a file is missing, a link, or of another size.
    """
    for path, info in files.items():
        size = _regular_file(root, path).stat().st_size
        if size != info.bytes:
            raise BundleError(
                f"{root / path}: has {size} bytes, expected {info.bytes}; it was cut short or "
                f"altered, {AGAIN}"
            )


def _regular_file(root: Path, path: str) -> Path:
    place = root
    for part in PurePosixPath(path).parts:
        place = place / part
        if place.is_symlink():
            raise BundleError(f"{place}: is a symbolic link, expected the file itself; {AGAIN}")
    if not place.is_file():
        raise BundleError(f"{place}: is missing, expected a file of the bundle; {AGAIN}")
    return place
