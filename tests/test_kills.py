"""Compiles that are killed leave the old bundle, the new one or none, and the next one finishes.

`python -m tests.kills` does the same 200 times with the demo.
"""

import time
from pathlib import Path

from ditc.export import compile as compile_bundle

from .compiled import small_schedule
from .kills import bytes_of, disturb


def test_kills(tmp_path: Path) -> None:
    sched = small_schedule()
    for _ in range(2):
        start = time.perf_counter()
        alone = compile_bundle(sched, tmp_path / "alone", cache=tmp_path / "full", jobs=1)
        seconds = time.perf_counter() - start
    found = disturb(sched, None, tmp_path, kills=8, seed=3, warm=seconds, cold=1.0)
    assert found.kills == 8
    assert found.kills + found.finished == found.empty + found.whole
    place = compile_bundle(sched, tmp_path / "bundle", cache=tmp_path / "cache")
    assert bytes_of(place) == bytes_of(alone)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "bundle", "cache", "full"}
