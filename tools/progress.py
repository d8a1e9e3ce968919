"""Progress on the terminal; silent where nobody looks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["progress"]


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal, and a line at the end if it isn't.

    Yields:
        A function to call once an item is done.
    """
    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc=label, disable=not terminal, leave=False) as bar:

        def advance() -> None:
            bar.update()

        yield advance
    if not terminal:
        sys.stderr.write(f"{label}: done\n")
