"""Peak memory of this process and of those it starts, sampled while something runs."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "peak_memory"]

EVERY_SECONDS = 0.1


@dataclass
class Peak:
    """Most bytes that were resident at once.

    Attributes:
        largest: of the largest single process.
        together: of all processes at once, pages they share counted once.
    """

    largest: int = 0
    together: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Yield what becomes the peak of this process and its children, on Linux."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_SECONDS):
            found = [_resident(process) for process in _processes(os.getpid())]
            peak.largest = max(peak.largest, *(rss for rss, _ in found), 0)
            peak.together = max(peak.together, sum(share for _, share in found))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _processes(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            stat = (path / "stat").read_text()
        except OSError:
            continue
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found.extend(child for child, parent in parents.items() if parent == process)
    return found


def _resident(process: int) -> tuple[int, int]:
    """Return a process's resident bytes, and its proportional share of them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0, 0
    sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return 1024 * int(sizes.get("Rss", 0)), 1024 * int(sizes.get("Pss", 0))
