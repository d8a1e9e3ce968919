"""Graphs are found in the cache or built into it, here or in processes of their own."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from ditc.export import compile as compile_bundle
from ditc.export.building import Job, build
from ditc.export.cache import EngineCache, key_of
from ditc.export.lowered import Lowered, Source
from ditc.runtime.errors import LoweringError, PassError

from .compiled import small_schedule
from .kills import bytes_of, is_whole


def made(mark: int = 0) -> Lowered:
    return Lowered(
        graph=b"graph %d" % mark,
        inputs=("x",),
        outputs=("y",),
        weights={"w_transposed": Source("w", True)},
        constants={"constant_2_0": torch.tensor([1.5, float("inf")]), "scalar": torch.tensor(3)},
        multiply_adds=7,
    )


def fails() -> Lowered:
    raise PassError("site a: can't")


def dies() -> Lowered:
    os.kill(os.getpid(), signal.SIGKILL)
    return made()


def jobs(*makes: Callable[[], Lowered]) -> list[Job]:
    return [Job(f"b{n}", key_of(n), make) for n, make in enumerate(makes)]


def same(first: Lowered, second: Lowered) -> bool:
    parts = ("graph", "inputs", "outputs", "weights", "multiply_adds", "names")
    return all(getattr(first, part) == getattr(second, part) for part in parts) and all(
        torch.equal(value, second.constants[name]) for name, value in first.constants.items()
    )


class Owner:
    """Garbage of this process, in a cycle; as an engine would, it takes another one with it."""

    def __init__(self) -> None:
        self.itself, self.process = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            os._exit(9)


def collects() -> Lowered:
    gc.collect()
    return made()


def test_garbage_of_the_parent_is_left_to_it(tmp_path: Path) -> None:
    """An engine's threads aren't in a forked process, and its end would wait for them for ever."""
    gc.disable()
    try:
        Owner()
        found = build(jobs(collects, collects), EngineCache(tmp_path), 2, lambda *_: None)
        assert found.keys() == {"b0", "b1"}
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_missing_is_built_and_kept(tmp_path: Path, workers: int) -> None:
    cache, told = EngineCache(tmp_path / "cache"), []
    cache.put(key_of(1), made(1))
    wanted = jobs(partial(made, 0), fails, partial(made, 2), partial(made, 3))
    found = build(wanted, cache, workers, lambda name, built: told.append((name, built)))
    assert [same(found[f"b{n}"], made(n)) for n in range(4)] == [True] * 4
    assert sorted(told) == [("b0", True), ("b1", False), ("b2", True), ("b3", True)]
    told.clear()
    build(jobs(fails, fails, fails, fails), cache, workers, lambda *entry: told.append(entry))
    assert sorted(told) == [(f"b{n}", False) for n in range(4)]
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_arrive_as_they_are_and_the_rest_is_kept(tmp_path: Path, workers: int) -> None:
    cache = EngineCache(tmp_path)
    with pytest.raises(PassError, match=r"^site a: can't$"):
        build(jobs(made, fails), cache, workers, lambda *_: None)
    assert cache.get(key_of(1)) is None


def test_a_process_that_ends_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="b0: the process that built it ended with -9: if mem"):
        build(jobs(dies, made), EngineCache(tmp_path), 2, lambda *_: None)


def test_equal_keys_are_built_once(tmp_path: Path) -> None:
    calls = []
    twice = [Job(name, "k", lambda: (calls.append(1), made())[1]) for name in ("b0", "b1")]
    found = build(twice, EngineCache(tmp_path), 1, lambda *_: None)
    assert same(found["b0"], found["b1"])
    assert calls == [1]


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damage_is_built_again(tmp_path: Path, damage: bytes | None) -> None:
    cache = EngineCache(tmp_path)
    cache.put("k", made())
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw) if damage is None else damage)
    assert cache.get("k") is None
    assert not path.exists()


def test_old_parts_are_swept_and_young_ones_are_not(tmp_path: Path) -> None:
    for name, age in (("old", 7200), ("young", 0)):
        path = tmp_path / f".{name}.part"
        path.write_text("")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    EngineCache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".young.part"]


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoweringError, match=r"cache .*file: .*: name another folder with cache="):
        EngineCache(tmp_path / "file")


def _compile(place: Path, cache: Path, both: Barrier) -> None:
    torch.set_num_threads(1)
    both.wait()
    compile_bundle(small_schedule(), place, cache=cache, jobs=1)


def test_two_builds_share_a_cache(tmp_path: Path) -> None:
    """Both begin at once with an empty cache; each bundle is whole, and they are equal."""
    small_schedule()
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    running = [
        context.Process(target=_compile, args=(tmp_path / name, tmp_path / "cache", both))
        for name in "ab"
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert is_whole(tmp_path / "a")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert not list(tmp_path.glob(".*"))


WORKERS_DIE = """
import os, signal, sys, time
from pathlib import Path
from ditc.export.building import Job, build
from ditc.export.cache import EngineCache
from tests.test_building import made
def slow():
    Path(sys.argv[1], f"{os.getpid()}.pid").touch()
    if len(list(Path(sys.argv[1]).glob("*.pid"))) == 2:
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
build([Job(n, n, slow) for n in "ab"], EngineCache(Path(sys.argv[1])), 2, lambda *_: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS_DIE, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    for _ in range(100):
        if not any(_runs(pid) for pid in pids):
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("a child outlived its parent")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
