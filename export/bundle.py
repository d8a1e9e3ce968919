"""Write a bundle: beside its place first, then renamed into it, so that it's whole or not there."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditc.runtime.errors import BundleError
from ditc.runtime.manifest import FileInfo

__all__ = ["records", "staged"]

MANIFEST = "manifest.json"


@contextmanager
def staged(place: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `place` that takes its place if the block ends well.

    A bundle that lies there is replaced; anything else is left alone.

    Raises:
        BundleError: if `place` holds something that is no bundle, or its parent can't be written.
    """
    _check_place(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise BundleError(f"bundle {place}: can't be written there: {error}") from error
    try:
        yield folder
        _open_to_readers(folder)
        _swap(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def records(folder: Path) -> dict[str, FileInfo]:
    """Return size and SHA-256 of every file in a folder but the manifest, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): _record(path) for path in files}


def _record(path: Path) -> FileInfo:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(digest, path.stat().st_size)


def _open_to_readers(folder: Path) -> None:
    """Give a bundle the permissions of ordinary files; temporary ones are their owner's alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _check_place(place: Path) -> None:
    if not place.exists() or (place / MANIFEST).is_file():
        return
    if place.is_dir() and not any(place.iterdir()):
        return
    raise BundleError(f"{place} is there and is no bundle: remove it, or write somewhere else")


def _swap(folder: Path, place: Path) -> None:
    """Move the new bundle into place; the old one, if any, is moved away first."""
    if not place.exists():
        folder.replace(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}.old.", dir=place.parent))
    place.replace(old / "bundle")
    try:
        folder.replace(place)
    except OSError:
        (old / "bundle").replace(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
