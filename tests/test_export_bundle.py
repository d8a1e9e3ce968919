"""A bundle is written beside its place and renamed into it: whole, or not there."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ditc.export.bundle import records, staged
from ditc.runtime.errors import BundleError


def write(folder: Path, text: str = "new") -> None:
    (folder / "weights").write_text(text)
    record = {"format": "ditc-bundle", "files": {"weights": {}}}
    (folder / "manifest.json").write_text(json.dumps(record))


def spoil(place: Path, act: Callable[[], object]) -> None:
    """Write a bundle up to something that goes wrong."""
    with staged(place) as folder:
        write(folder)
        act()


def interrupt() -> None:
    raise KeyboardInterrupt


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_new_place_and_its_parents(tmp_path: Path) -> None:
    with staged(tmp_path / "a" / "b" / "bundle") as folder:
        write(folder)
        assert not (tmp_path / "a" / "b" / "bundle").exists()
    assert tree(tmp_path / "a") == ["b", "b/bundle", "b/bundle/manifest.json", "b/bundle/weights"]


def test_others_may_read_it(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle") as folder:
        write(folder)
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bundle" / "weights").stat().st_mode & 0o777 == 0o644


def test_a_bundle_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "bundle") as folder:
            write(folder, text)
    assert (tmp_path / "bundle" / "weights").read_text() == "new"
    assert tree(tmp_path) == ["bundle", "bundle/manifest.json", "bundle/weights"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staged(tmp_path / "bundle") as folder:
        write(folder)
    assert tree(tmp_path) == ["bundle", "bundle/manifest.json", "bundle/weights"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with staged(tmp_path / "link") as folder:
        write(folder)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "weights").read_text() == "new"


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        spoil(tmp_path / "a" / "b" / "bundle", interrupt)
    assert tree(tmp_path) == []


def test_an_interrupted_block_leaves_the_old_bundle(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle") as folder:
        write(folder, "old")
    with pytest.raises(KeyboardInterrupt):
        spoil(tmp_path / "bundle", interrupt)
    assert (tmp_path / "bundle" / "weights").read_text() == "old"
    assert tree(tmp_path) == ["bundle", "bundle/manifest.json", "bundle/weights"]


def test_a_swap_that_fails_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(tmp_path / "bundle") as folder:
        write(folder, "old")
    rename = os.rename

    def replace(self: Path, target: Path) -> Path:
        if self.name.startswith(".bundle.") and target.name == "bundle":
            raise OSError("no room")
        rename(self, target)
        return target

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr("ditc.export.bundle._exchange", lambda first, second: False)
    with pytest.raises(BundleError, match="can't be written: no room"):
        spoil(tmp_path / "bundle", lambda: None)
    assert (tmp_path / "bundle" / "weights").read_text() == "old"
    assert tree(tmp_path) == ["bundle", "bundle/manifest.json", "bundle/weights"]


def test_a_bundle_is_replaced_where_folders_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditc.export.bundle._exchange", lambda first, second: False)
    test_a_bundle_is_replaced(tmp_path)


def test_the_place_always_holds_a_whole_bundle(tmp_path: Path) -> None:
    """Another process looks as often as it can while bundles are exchanged."""
    place = tmp_path / "bundle"
    with staged(place) as folder:
        write(folder)
    look = "import os, sys\nwhile True: os.stat(sys.argv[1] + '/manifest.json')"
    watcher = subprocess.Popen([sys.executable, "-c", look, str(place)], stderr=subprocess.DEVNULL)
    for number in range(300):
        with staged(place) as folder:
            write(folder, str(number))
    assert watcher.poll() is None
    watcher.kill()
    watcher.wait()


def killed(act: str, place: Path) -> None:
    """Run a build in a process that is killed in the midst of it."""
    code = f"""
import os, sys
from pathlib import Path
from ditc.export import bundle
from tests.test_export_bundle import write
place = Path(sys.argv[1])
{act}
with bundle.staged(place) as folder:
    write(folder, "newer")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(place)], check=False).returncode == -9


def test_what_a_killed_build_left_is_swept(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    with staged(place) as folder:
        write(folder, "old")
    (tmp_path / ".bundle.ditc-").mkdir()
    (tmp_path / ".bundle.backup_1").mkdir()
    killed("", place)
    assert len([path for path in tmp_path.iterdir() if ".ditc-" in path.name]) == 2
    assert (place / "weights").read_text() == "old"
    with staged(place) as folder:
        write(folder)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [".bundle.backup_1", ".bundle.ditc-", "bundle"]
    assert (place / "weights").read_text() == "new"


def test_a_build_that_runs_is_not_swept(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    with staged(place) as folder:
        write(folder, "first")
        with staged(place) as other:
            write(other, "second")
        assert (place / "weights").read_text() == "second"
    assert (place / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_was_moved_away_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames, where folders can't be exchanged."""
    place = tmp_path / "bundle"
    with staged(place) as folder:
        write(folder, "old")
    act = """
bundle._exchange = lambda first, second: False
write(place)
bundle._sweep(place)
old = Path(bundle.tempfile.mkdtemp(prefix=".bundle.ditc-", dir=place.parent))
place.replace(old / bundle.MOVED)
os.kill(os.getpid(), 9)
"""
    killed(act, place)
    assert not place.exists()
    with pytest.raises(KeyboardInterrupt):
        spoil(place, interrupt)
    assert tree(tmp_path) == ["bundle", "bundle/manifest.json", "bundle/weights"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"can't be written: .*No space left"):
        spoil(tmp_path / "bundle", lambda: Path("/dev/full").write_text("x"))
    assert tree(tmp_path) == []


def refusal(place: Path) -> str:
    before = tree(place.parent)
    with pytest.raises(BundleError) as caught, staged(place):
        pytest.fail("nothing may be written there")
    assert tree(place.parent) == before
    return str(caught.value)


def test_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.tex").write_text("all of it")
    expected = f"{place} is there and is no bundle: remove it, or write somewhere else"
    assert refusal(place) == expected
    (place / "manifest.json").write_text('{"name": "an extension of a browser"}')
    assert refusal(place) == expected
    (place / "manifest.json").write_text("[")
    assert refusal(place) == expected
    assert refusal(place / "thesis.tex").startswith(f"{place / 'thesis.tex'} is there")


def test_what_was_put_into_a_bundle_is_left_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle") as folder:
        write(folder)
    (tmp_path / "bundle" / "best.png").write_text("kept nowhere else")
    assert refusal(tmp_path / "bundle") == (
        f"{tmp_path / 'bundle'} holds best.png, which is no part of the bundle there: move it, or "
        "write somewhere else"
    )


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "bundle")
    assert message.startswith(f"bundle {tmp_path / 'file' / 'bundle'}: can't be written: ")
    assert "\n" not in message


def test_records_are_of_every_file_but_the_manifest(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "b00.onnx").write_bytes(b"graph")
    found = records(tmp_path)
    assert list(found) == ["graphs/b00.onnx", "weights"]
    assert found["weights"].sha256 == hashlib.sha256(b"new").hexdigest()
    assert found["weights"].bytes == 3
