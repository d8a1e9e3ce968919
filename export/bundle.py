"""Write a bundle: beside its place first, then renamed into it, so that it's whole or not there."""

import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ditc.runtime.errors import BundleError
from ditc.runtime.manifest import FORMAT, MANIFEST_FILE, FileInfo

try:
    import fcntl
except ImportError:  # no such locks on this system: what a killed build left stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_place", "records", "staged"]

AT_CWD = -100
"""`AT_FDCWD`, and the flag of renameat2(2) that exchanges."""
EXCHANGE = 2
MOVED = "moved"
"""Where a bundle lies while another takes its place, on systems that can't exchange."""


@contextmanager
def staged(place: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `place` that takes its place if the block ends well.

    A bundle that lies there is replaced; anything else is left alone. If the block fails, nothing
    is left of it, nor of parent folders made for it.

    Raises:
        BundleError: if `place` holds something that is no bundle, or files can't be written.
    """
    check_place(place)
    place = Path(os.path.realpath(place))
    made = [parent for parent in place.parents if not parent.exists()]
    folder, lock = None, None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        folder, lock = _reserve(place)
        yield folder
        _open_to_readers(folder)
        _swap(folder, place)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"bundle {place}: can't be written: {error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        with suppress(OSError):  # those that hold the bundle aren't empty and stay
            for parent in made:
                parent.rmdir()


def records(folder: Path, known: Mapping[str, FileInfo] | None = None) -> dict[str, FileInfo]:
    """Return size and SHA-256 of every file in a folder but the manifest, by relative path.

    Args:
        folder: where.
        known: those of files that were told while they were written.
    """
    told = known or {}
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE
    )
    names = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {name: told.get(name) or _record(path) for name, path in names}


def _record(path: Path) -> FileInfo:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(digest, path.stat().st_size)


def _open_to_readers(folder: Path) -> None:
    """Give a bundle the permissions of ordinary files; temporary ones are their owner's alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def check_place(place: Path) -> None:
    """Refuse a place that holds anything but a bundle, or nothing.

    Raises:
        BundleError: naming what is there.
    """
    place = Path(os.path.realpath(place))
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


def _prefix(place: Path) -> str:
    return f".{place.name}.ditc-"


def _reserve(place: Path) -> tuple[Path, int | None]:
    """Make a folder beside a place, locked as long as this process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(place), dir=place.parent))
        if fcntl is None:
            return folder, None
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
                return folder, lock
            os.close(lock)


def _sweep(place: Path) -> None:
    """Remove the folders that killed builds left beside a place: those that nobody has locked."""
    if fcntl is None:
        return
    for folder in place.parent.glob(f"{glob.escape(_prefix(place))}????????"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _restore(folder, place)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _restore(folder: Path, place: Path) -> None:
    """Put back the bundle that a killed build had moved away, where nothing took its place."""
    if (folder / MOVED).is_dir() and not place.exists():
        (folder / MOVED).rename(place)


def _swap(folder: Path, place: Path) -> None:
    """Move the new bundle into place; the old one, if any, is in `folder` then, or gone.

    Where the system can exchange two folders there is a whole bundle at every moment.
    """
    if not place.exists() or not any(place.iterdir()):
        folder.replace(place)
    elif not _exchange(folder, place):
        _replace(folder, place)


def _replace(folder: Path, place: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=_prefix(place), dir=place.parent))
    place.replace(old / MOVED)
    try:
        folder.replace(place)
    except OSError:
        (old / MOVED).replace(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return whether this system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    failed = rename(AT_CWD, os.fsencode(first), AT_CWD, os.fsencode(second), EXCHANGE)
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(second))
