"""What the command advises where options, files and models don't go together, before any work."""

import sys
from pathlib import Path

import pytest

from ditc.runtime.errors import BundleError, DitcError, PassError
from ditc.runtime.manifest import Manifest
from ditc.runtime.variants import read_index
from ditc.tools.building import built_of
from ditc.tools.cli import main
from ditc.tools.counted import counted
from ditc.tools.outputs import check_makes
from ditc.tools.windows import parse_window, windowed

from . import reports
from .bundles import write_bundle
from .commands import Capture, fails, misused
from .samples import sample


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a plan of four steps, a bundle, and a pipeline's index."""
    reports.write_plan(tmp_path)
    write_bundle(tmp_path / "bundle")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMPILE = ("compile", "none:make", "--plan")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            (*COMPILE, "plan.json", "-o", "new", "--call", '{"num_inference_steps": 10}'),
            "--call asks for 10 steps, the plan plan.json has 4: leave num_inference_steps out",
        ),
        (
            ("search", "none:make", "-o", "new", "--call", '{"num_inference_steps": 10}'),
            "--call asks for 10 steps, --steps has 20: leave num_inference_steps out",
        ),
        (
            (*COMPILE, "none.json", "-o", "new"),
            "plan none.json: can't be read: No such file or directory",
        ),
        (
            (*COMPILE, "plan.json", "-o", "pipe"),
            "pipe is there and is no bundle: remove it, or write somewhere else",
        ),
        (
            (*COMPILE, "plan.json", "-o", "new", "--weights", "baked"),
            "--weights baked: target onnx has no engines to hold them: leave it out, or compile "
            "with another --target",
        ),
        (
            (*COMPILE, "plan.json", "-o", "new", "--latency", "none.json"),
            "latencies none.json: can't be read: No such file or directory",
        ),
        (("bench", "bundle", "--samples", "3"), "--samples: is of --sites, a bundle has its own"),
        (("bench", "bundle", "--call", '{"a": 1}'), "--call: is of --sites, a bundle has its own"),
        (("bench", "bundle", "--window", "band"), "--window: is of --sites, a bundle has its own"),
        (("bench", "pipe"), "pipe: is a diffusers pipeline, no bundle: compile it with 'ditc comp"),
        (("run", "bundle", "-o", "x.png", "--fps", "8"), "--fps 8: is of videos, but --out x.png"),
        (("report", "plan.json", "-o", "x.pdf"), "--out x.pdf: is written as HTML: end it in .htm"),
    ],
)
def test_one_line_before_any_work(
    capsys: Capture, place: Path, command: tuple[str, ...], told: str
) -> None:
    before = sorted(place.rglob("*"))
    assert told in fails(capsys, *command)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("command", [("run", "-o", "x.npy"), ("inspect",), ("verify",)])
def test_a_pipeline_is_no_bundle(capsys: Capture, place: Path, command: tuple[str, ...]) -> None:
    name, *more = command
    assert fails(capsys, name, place / "pipe", *more) == (
        f"{place / 'pipe'}: is a diffusers pipeline, no bundle: compile it with 'ditc compile'"
    )
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_index(place)


def test_targets_are_looked_for_before_models(
    capsys: Capture, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    told = fails(capsys, *COMPILE, "plan.json", "-o", "new", "--target", "tensorrt")
    assert told.startswith("target tensorrt needs tensorrt, which can't be imported")


def test_what_compare_needs(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ditc.tools.comparing_images", raising=False)
    monkeypatch.delitem(sys.modules, "ditc.tools.quality", raising=False)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert "not installed: install ditc's extra [dev]" in fails(capsys, "compare", "a", "b")


def test_an_mp4_of_pictures_needs_nothing(
    place: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bundle makes is told first, and not what would have to be installed."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(DitcError, match="has no decoder that makes frames"):
        check_makes(manifest, Path("x.mp4"))


@pytest.fixture
def manifest(place: Path) -> Manifest:
    return Manifest.from_json((place / "bundle" / "manifest.json").read_text())


def test_a_tile_of_too_many_axes() -> None:
    program = sample("dit", "cond-first").program
    height, width = program.grid
    with pytest.raises(PassError) as caught:
        windowed(program, parse_window("tile:2x2x2"))
    assert str(caught.value) == (
        f"the model's grid has 2 axes ({height} x {width}), the tile 2x2x2 has 3: give tile:2x2"
    )


def test_an_unknown_option_shows_the_usage_of_its_command(capsys: Capture) -> None:
    last = misused(capsys, "inspect", "x", "--colour")
    assert last == "ditc inspect: error: unrecognized arguments: --colour"
    with pytest.raises(SystemExit):
        main(["verify", "x", "--fast"])
    assert capsys.readouterr().err.startswith("usage: ditc verify ")


def test_singulars() -> None:
    assert (counted(1, "pair"), counted(2, "pair")) == ("1 pair", "2 pairs")
    assert counted(0, "graph") == "0 graphs"
    assert built_of(1, 1) == "1 of 1 graph built"
    assert built_of(6, 6) == "6 of 6 graphs built"
    assert built_of(2, 6) == "2 of 6 graphs built, the others found in the cache"
