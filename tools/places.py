"""Where a command may write a file: told before it works for nothing; and writing it whole."""

from contextlib import suppress
from pathlib import Path

from ditc.runtime.errors import DitcError

__all__ = ["check_place", "replace_text"]


def check_place(option: str, path: Path) -> None:
    """Refuse a place that holds anything but a file, or that is in no folder.

    Files are written beside their place and renamed into it, which would replace a device as well.

    Args:
        option: what the user gave the path by, for the message.
        path: the file to write; one that lies there is replaced.

    Raises:
        DitcError: if it can't be written there.
    """
    where = f"{option} {path}: can't be written"
    if path.is_dir():
        raise DitcError(f"{where}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise DitcError(f"{where}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise DitcError(f"{where}: is a device or a pipe, expected the name of a file")


def replace_text(path: Path, text: str) -> None:
    """Write a text file: beside its place first, then renamed into it.

    Raises:
        DitcError: if it can't be written; nothing is left of it then.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise DitcError(f"{path}: can't be written: {error.strerror}") from error
