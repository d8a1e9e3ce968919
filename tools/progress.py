"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["progress"]

EVERY_S = 10.0
"""Seconds between two lines, at least."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; if it isn't, a line at the end.

    Where there is no terminal, what takes long says how far it is every ten seconds at most.

    Yields:
        A function to call once an item is done.
    """
    terminal = sys.stderr.isatty()
    done, said = 0, time.monotonic()
    with tqdm(total=total, desc=label, disable=not terminal, leave=False) as bar:

        def advance() -> None:
            nonlocal done, said
            bar.update()
            done += 1
            if terminal or done >= total or time.monotonic() - said < EVERY_S:
                return
            said = time.monotonic()
            sys.stderr.write(f"{label}: {done} of {total}\n")
            sys.stderr.flush()

        yield advance
    if not terminal:
        sys.stderr.write(f"{label}: done\n")
