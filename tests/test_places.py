"""Files that commands write: where none can be is told first, and what fails leaves nothing."""

import os
import sys
from pathlib import Path

import pytest
import torch

from ditc.runtime.errors import DitcError
from ditc.tools import searching
from ditc.tools.cli import main
from ditc.tools.decisions import Checkpoint
from ditc.tools.journal import Journal
from ditc.tools.places import check_place, replace_text

from . import reports
from .bundles import write_bundle

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="waits for pipes that lie in folders")
SEARCH = ("search", "none:make", "--steps", "2", "-o")
BENCH = ("bench", "none:make", "--sites", "-o")


@pytest.mark.parametrize("place", ["", ".", "/", "none/file"])
def test_places_without_a_name_or_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DitcError, match=r"--out .*: can't be written: (is a folder|there is no f)"):
        check_place("--out", Path(place))


@POSIX
def test_what_is_no_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, plan = str(write_bundle(tmp_path / "bundle")), str(reports.write_plan(tmp_path))
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    before = sorted(tmp_path.rglob("*"))
    report = ("report", plan, "-o")
    for command in (
        (*report, str(pipe)),
        (*report, str(tmp_path / "report.html"), "--png", str(pipe)),
        ("run", bundle, "-o", str(pipe)),
        (*SEARCH, str(pipe)),
        (*BENCH, str(pipe)),
    ):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert told.endswith(
            f"{pipe}: can't be written: is a device or a pipe, expected the name of a file\n"
        ), told
    assert pipe.is_fifo()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [SEARCH, BENCH], ids=lambda command: command[0])
def test_folders_are_told_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert main((*command, str(tmp_path))) == 1
    assert capsys.readouterr().err.endswith("is a folder, expected the name of a file\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [1, 10_001])
def test_searches_of_too_few_or_too_many_steps(
    steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "plan.json")
    assert main(["search", "none:make", "--steps", str(steps), "-o", out]) == 1
    expected = f"ditc: --steps {steps}: expected 2 to 10000; step 0 is never compressed\n"
    assert capsys.readouterr().err == expected


def test_a_model_in_a_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, out = tmp_path / "none", str(tmp_path / "plan.json")
    for model in (str(place), "./none"):
        assert main(["search", model, "-o", out]) == 1
        assert capsys.readouterr().err == f"ditc: model {model}: there is no such folder\n"


def test_an_interrupted_search_says_that_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "search", stop)
    assert main(["search", "demo", "-o", str(tmp_path / "plan.json")]) == 130
    expected = "ditc: interrupted; the same command goes on from there\n"
    assert capsys.readouterr().err == expected


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "text"
    replace_text(place, "first")

    def full(self: Path, text: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(text[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DitcError, match="text: can't be written: No space left on device"):
        replace_text(place, "second")
    assert place.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_journal_that_finds_no_room(tmp_path: Path) -> None:
    checkpoint = Checkpoint(steps=(), slots={"s": torch.ones(3)}, trajectory={})
    Journal(tmp_path / "journal", {}).write(checkpoint)
    for path in (tmp_path / "none" / "journal", tmp_path / ("j" * 252)):
        with pytest.raises(DitcError, match="can't be written: "):
            Journal(path, {}).write(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    found = Journal(tmp_path / "journal", {}).read()
    assert found is not None
    assert torch.equal(found.slots["s"], torch.ones(3))


def test_memory_that_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = reports.write_plan(tmp_path)
    given = ["compile", "demo", "--plan", str(plan), "-o", str(tmp_path / "bundle")]
    assert main([*given, "--samples", str(10**12)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "memory is short: " in told
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
