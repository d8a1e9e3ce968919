"""Engines in the cache: whole or not there, beside graphs of the same key."""

from pathlib import Path

import pytest

from ditc.export.cache import EngineCache
from ditc.export.engine_file import EngineFile, pack, unpack


def engine(plan: bytes = b"a plan") -> EngineFile:
    return EngineFile(plan, "1.7", {"site#3": "no kernel"}, 2.5, 1000)


def fields(found: EngineFile | None) -> tuple[object, ...]:
    assert found is not None
    return (found.plan, found.version, found.decomposed, found.seconds, found.peak_bytes)


def test_round_trip(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert cache.get_engine("k") is None
    cache.put_engine("k", engine())
    assert fields(cache.get_engine("k")) == fields(engine())
    assert cache.get("k") is None


@pytest.mark.parametrize("at", [20, -1])
def test_a_damaged_engine_is_removed(tmp_path: Path, at: int) -> None:
    cache = EngineCache(tmp_path)
    cache.put_engine("k", engine())
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert cache.get_engine("k") is None
    assert not list(tmp_path.iterdir())


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(pack(engine())[:-3])
    assert unpack(path.read_bytes(), str(path)) is None
