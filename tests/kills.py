"""Kill compiles of the demo at random moments: `python -m tests.kills COUNT FOLDER [SEED]`.

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
from pathlib import Path

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
    sched: Schedule, sampler: object, folder: Path, kills: int, seed: int, longest: float
) -> Outcome:
    """Kill compiles at random moments; every second one finds the cache as the last left it.

    Raises:
        BundleError: if a place holds half a bundle after a kill.
    """
    draw = random.Random(seed)
    place, cache = folder / "bundle", folder / "cache"
    found = {"kills": 0, "finished": 0, "empty": 0, "whole": 0}
    for number in range(kills):
        cold = number % 2 == 1
        if cold and number % 4 == 1:
            shutil.rmtree(place, ignore_errors=True)
        for entry in sorted(cache.glob("*.lowered"))[-2:] if cold else ():
            entry.unlink()
        child = multiprocessing.get_context("fork").Process(
            target=_compile, args=(sched, sampler, place, cache)
        )
        child.start()
        child.join(draw.uniform(0, longest if cold else min(longest, 1.0)))
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
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    torch.set_num_threads(1)
    sched, sampler = demo()
    start = time.perf_counter()
    alone = compile_bundle(sched, folder / "alone", sampler=sampler, cache=folder / "cache-alone")
    first = time.perf_counter() - start
    start = time.perf_counter()
    compile_bundle(sched, folder / "alone", sampler=sampler, cache=folder / "cache-alone")
    print(f"first compile {first:.1f} s, second {time.perf_counter() - start:.2f} s", flush=True)
    shutil.copytree(folder / "cache-alone", folder / "cache")
    print(disturb(sched, sampler, folder, count, seed, longest=12.0), flush=True)
    place = compile_bundle(sched, folder / "bundle", sampler=sampler, cache=folder / "cache")
    assert bytes_of(place) == bytes_of(alone), "another bundle than without kills"
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["alone", "bundle", "cache", "cache-alone"], left
    print("the next compile equals one that nobody disturbed, and nothing is left beside it")


if __name__ == "__main__":
    main()
