"""Kill compiles of the demo at random moments: `python -m tests.kills [COUNT] [SEED]`.

After each kill the place holds no bundle or a whole one, and in the end a compile that nobody
disturbs writes the bytes that one without any kill writes.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ditc.export import compile as compile_bundle
from ditc.passes import Schedule
from ditc.runtime.files import check_files, read_text
from ditc.runtime.manifest import MANIFEST_FILE, Manifest

__all__ = ["Outcome", "bytes_of", "demo", "disturb", "is_whole"]


@dataclass(frozen=True)
class Outcome:
    """What kills came upon: compiles they ended, and the places found empty and whole."""

    kills: int
    finished: int
    empty: int
    whole: int


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_whole(place: Path) -> bool:
    """Return whether a bundle is there; raises if there is something else."""
    if not place.exists():
        return False
    check_files(place, Manifest.from_json(read_text(place, MANIFEST_FILE)).files)
    return True


def disturb(
    sched: Schedule, sampler: object, folder: Path, kills: int, seed: int, warm: float, cold: float
) -> Outcome:
    """Kill compiles at random moments.

    Of four, three find all graphs in the cache and are writing the bundle when they are killed,
    one has a graph to build; every eighth finds no bundle in the place.

    Args:
        sched: what is compiled.
        sampler: with which scheduler.
        folder: holds `full`, a cache of all graphs; gets `bundle` and `cache`.
        kills: compiles to kill; those that finish before don't count.
        seed: of the moments.
        warm: seconds after which the former are killed at the latest.
        cold: the same of the latter.

    Raises:
        BundleError: if a place holds half a bundle after a kill.
    """
    draw = random.Random(seed)
    place, cache = folder / "bundle", folder / "cache"
    found = {"kills": 0, "finished": 0, "empty": 0, "whole": 0}
    for number in count():
        if found["kills"] == kills:
            break
        builds = number % 4 == 3
        if number % 8 == 0:
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "full", cache, dirs_exist_ok=True)
        if builds:
            draw.choice(sorted(cache.glob("*.lowered"))).unlink()
        child = multiprocessing.get_context("fork").Process(
            target=_compile, args=(sched, sampler, place, cache)
        )
        child.start()
        child.join(draw.uniform(0, cold if builds else warm))
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        found["kills" if child.exitcode == -signal.SIGKILL else "finished"] += 1
        found["whole" if is_whole(place) else "empty"] += 1
    return Outcome(**found)


def _compile(sched: Schedule, sampler: object, place: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    compile_bundle(sched, place, sampler=sampler, cache=cache)


def demo() -> tuple[Schedule, object]:
    """Return the shipped model under its plan, and its scheduler."""
    from ditc.passes import Plan, schedule
    from ditc.tools import models

    recording = models.demo_recording()
    plan = Plan.load(Path(models.__file__).parent / "demo_model" / "plan.json")
    return schedule(recording.capture(), plan), recording.scheduler


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    sched, sampler = demo()
    with TemporaryDirectory(prefix="ditc-kills-") as name:
        folder = Path(name)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            alone = compile_bundle(sched, folder / "alone", sampler=sampler, cache=folder / "full")
            seconds.append(time.perf_counter() - start)
        print(f"first compile {seconds[0]:.1f} s, second {seconds[1]:.2f} s", flush=True)
        print(disturb(sched, sampler, folder, kills, seed, 1.5 * seconds[1], 8.0), flush=True)
        place = compile_bundle(sched, folder / "bundle", sampler=sampler, cache=folder / "cache")
        assert bytes_of(place) == bytes_of(alone), "another bundle than without kills"
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["alone", "bundle", "cache", "full"], left
        parts = [path.name for path in (folder / "cache").iterdir() if path.suffix == ".part"]
    print("the next compile equals one that nobody disturbed, to the byte; beside it nothing is")
    print(f"left; in the cache {len(parts)} unfinished files, which are swept after an hour")


if __name__ == "__main__":
    main()
