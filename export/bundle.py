"""Write a bundle: beside its place first, then renamed into it, so that it's whole or not there."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ditc.runtime.errors import BundleError
from ditc.runtime.manifest import FORMAT, MANIFEST_FILE, FileInfo

__all__ = ["records", "staged"]


@contextmanager
def staged(place: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `place` that takes its place if the block ends well.

    A bundle that lies there is replaced; anything else is left alone. If the block fails, nothing
    is left of it, nor of parent folders made for it.

    Raises:
        BundleError: if `place` holds something that is no bundle, or files can't be written.
    """
    place = place.resolve()
    _check_place(place)
    made = [parent for parent in place.parents if not parent.exists()]
    folder = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        yield folder
        _open_to_readers(folder)
        _swap(folder, place)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"bundle {place}: can't be written: {error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # those that hold the bundle aren't empty and stay
            for parent in made:
                parent.rmdir()


def records(folder: Path) -> dict[str, FileInfo]:
    """Return size and SHA-256 of every file in a folder but the manifest, by relative path."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )
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
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    listed = _listed(place / MANIFEST_FILE)
    if listed is None:
        raise BundleError(f"{place} is there and is no bundle: remove it, or write somewhere else")
    files = (path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    strangers = sorted(set(files) - listed)
    if strangers:
        raise BundleError(
            f"{place} holds {strangers[0]}, which is no part of the bundle there: move it, or "
            "write somewhere else"
        )


def _listed(path: Path) -> set[str] | None:
    """Return the files that belong to the bundle of this manifest, None if it is no manifest."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    files = record.get("files")
    return {MANIFEST_FILE, *files} if isinstance(files, dict) else None


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
