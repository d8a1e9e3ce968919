"""`ditc report`: what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditc.runtime.errors import DitcError
from ditc.tools.cli import main
from ditc.tools.report_colours import METHODS
from ditc.tools.report_data import read_facts
from ditc.tools.report_png import heat_map_png

from . import reports
from .compiled import small_bundle
from .report_pages import data_of, plan_page, refused

EDGES = {"bench": "--bench", "demo": "--demo", "pareto": "--pareto"}


def test_a_bundle_needs_no_torch(tmp_path: Path) -> None:
    """Torch can't be imported in this process, as where it isn't installed."""
    out = tmp_path / "report.html"
    code = (
        "import sys; sys.modules['torch'] = None; from ditc.tools.cli import main;"
        f"sys.exit(main(['report', {str(small_bundle())!r}, '-o', {str(out)!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    text = out.read_text()
    assert "of attention left" in text
    facts = read_facts(small_bundle())
    assert facts.costs is not None
    assert data_of(text)["spent"] == [list(row) for row in facts.costs.spent]
    sites = len(data_of(text)["sites"])  # type: ignore[arg-type]
    expected = ("full", "wa-rs", "asc", "ast")
    assert data_of(text)["cells"] == [[METHODS.index(method)] * sites for method in expected]


def test_the_command_writes_page_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reports.write_plan(tmp_path)
    out, png = tmp_path / "report.html", tmp_path / "plan.png"
    for _ in range(2):
        assert main(["report", str(path), "-o", str(out), "--png", str(png)]) == 0
    assert out.read_text() == plan_page(path)
    assert png.read_bytes() == heat_map_png(read_facts(path))
    assert sorted(tmp_path.iterdir()) == [path, png, out]
    assert capsys.readouterr().err == ""


def test_a_missing_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no bundle folder and no plan file" in refused(capsys, tmp_path / "o", tmp_path / "no")


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    message = refused(capsys, tmp_path / "o", tmp_path / "b")
    assert "is no bundle: it holds no manifest.json" in message


def test_a_bundle_whose_plan_was_altered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("manifest.json", "plan.json"):
        (folder / name).write_bytes((small_bundle() / name).read_bytes())
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace("cond-first", "rest-first"))
    assert "plan.json: has the SHA-256" in refused(capsys, tmp_path / "o", folder)


@pytest.mark.parametrize("option", EDGES.values())
def test_missing_files_beside_the_plan(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small_bundle() if option == "--bench" else reports.write_plan(tmp_path)
    line = refused(capsys, tmp_path / "o", source, option, tmp_path / "none")
    assert line.startswith(f"ditc: {option} {tmp_path / 'none'}")
    assert "can't be read" in line


def test_timings_of_another_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_bench(tmp_path / "bench.json", {"b00": 1.0, "b09": 2.0})
    line = refused(capsys, tmp_path / "o", small_bundle(), "--bench", path)
    assert "times the buckets b00, b09; the bundle has b00, b01, b02, b03" in line


def test_timings_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_bench(tmp_path / "bench.json", {"b00": 1.0})
    line = refused(capsys, tmp_path / "o", reports.write_plan(tmp_path), "--bench", path)
    assert "a plan has no buckets to time" in line


def test_a_demo_of_another_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    reports.write_json(folder / "report.json", {**reports.FIGURES, "attention_left": 0.25})
    line = refused(capsys, tmp_path / "o", reports.write_plan(tmp_path), "--demo", folder)
    assert "its plan leaves 25.0% of attention, plan.json leaves 56.6%" in line


def test_plans_too_large_to_draw(tmp_path: Path) -> None:
    path = reports.write_plan(tmp_path)
    record = json.loads(path.read_text())
    record["for"]["steps"] = 10_000
    record["cells"] = [record["cells"][0]] * 10_000
    record["losses"] = None
    for number in range(8):
        name = f"more.{number}"
        record["windows"][name] = {"radius": 2, "block": 1}
        record["cost"]["sites"][name] = record["cost"]["sites"][reports.SITES[0]]
    record["cells"] = [[*row, *["full"] * 8] for row in record["cells"]]
    reports.write_json(path, record)
    with pytest.raises(DitcError, match="10000 steps of 11 sites are too many to draw"):
        read_facts(path)


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_plan(tmp_path).rename(tmp_path / "plan.html")
    out = tmp_path / "out"
    out.mkdir()
    for places, words in (
        ([out], "is a folder"),
        ([tmp_path / "none" / "r.html"], "can't be written"),
        ([path], "is read for this report"),
        ([out / "r.html", "--png", out / "r.html"], "is where the report goes"),
        ([out / "r.html", "--png", tmp_path / "none" / "r.png"], "can't be written"),
        ([out / "r.html", "--png", out / "manifest.json"], "is written as PNG: end it in .png"),
    ):
        assert main(["report", str(path), "-o", *map(str, places)]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert list(out.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [out, path]
