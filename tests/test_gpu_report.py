"""The GPU report, run dry on the CPU, and what its entries, plans and tables are made of."""

import json
from pathlib import Path

import pytest
import torch

from ditc.passes import Method, Plan, capture, schedule
from ditc.tools import gpu_parity, gpu_report
from ditc.tools.gpu_entries import AbsentError, Entry, attempt
from ditc.tools.gpu_machine import describe
from ditc.tools.gpu_models import SHAPES, Denoiser, ModelShape, arguments, seeded
from ditc.tools.gpu_plans import LEVELS, attention_left, plan_with
from ditc.tools.gpu_table import markdown
from ditc.tools.gpu_windows import AttentionShape, check_kernel, windows

SECTIONS = {"parity", "windows", "methods", "models", "tuning"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict, str]:
    pytest.importorskip("triton", reason="waits for Triton: Linux only")
    out = tmp_path_factory.mktemp("report") / "results.json"
    options = ["--device", "cpu", "--tiny", "--rounds", "2", "--steps", "2"]
    code = gpu_report.main([*options, "-o", str(out)])
    return code, json.loads(out.read_text()), out.with_suffix(".md").read_text()


def test_a_dry_run_does_everything_and_says_what_it_is(
    dry_run: tuple[int, dict, str],
) -> None:
    code, record, table = dry_run
    failed = [entry for entry in record["entries"] if entry["status"] == "failed"]
    assert (code, failed) == (0, [])
    assert record["dry_run"] is True
    assert record["options"]["tiny"] is True
    assert record["machine"]["torch"] == torch.__version__
    assert {entry["section"] for entry in record["entries"]} == SECTIONS
    assert "**This is a dry run on a CPU" in table
    assert all(f"## {section.capitalize()}" in table for section in SECTIONS)


def test_what_is_absent_has_a_reason_and_no_number(dry_run: tuple[int, dict, str]) -> None:
    entries = dry_run[1]["entries"]
    absent = [entry for entry in entries if entry["status"] == "absent"]
    assert {"full, cuDNN"} <= {entry["name"].partition(": ")[2] for entry in absent}
    assert all(entry["reason"] and not entry["values"] for entry in absent)
    measured = [entry for entry in entries if entry["status"] == "measured"]
    assert all(entry["values"] and not entry["reason"] for entry in measured)
    times = [v for e in measured for name, v in e["values"].items() if name.endswith("_ms")]
    assert len(times) > 40
    assert min(times) > 0


def test_measured_attention_is_right(dry_run: tuple[int, dict, str]) -> None:
    """Every form within the rounding of fp16, the kernel's among them."""
    shown = {
        entry["name"].partition(": ")[2]: entry["values"]
        for entry in dry_run[1]["entries"]
        if entry["section"] == "windows" and entry["values"]
    }
    assert {
        "band, Triton",
        "3 x 3 tiles of 8 x 8, Triton",
        "band, dense blocks as in engines",
        "full, written out",
    } <= set(shown)
    assert all(0 < values["error"] < 2e-3 for values in shown.values())
    assert shown["band, Triton"]["density"] < 0.5


def test_methods_stand_beside_full(dry_run: tuple[int, dict, str]) -> None:
    entries = [entry for entry in dry_run[1]["entries"] if entry["section"] == "methods"]
    names = [entry["name"].partition(": ")[2] for entry in entries]
    assert names[0] == "full"
    assert set(names) >= {"asc", "wa-rs", "wa-rs+asc", "ast", "full, keeping the residual"}
    assert entries[0]["values"]["left_percent"] == 100
    assert entries[names.index("ast")]["values"]["left_percent"] < 50


def test_without_a_gpu_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main(["-o", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err == f"gpu_report: torch {torch.__version__} finds no GPU\n"
    assert gpu_report.main(["--device", "cpu", "-o", str(tmp_path / "no" / "x.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_entries_tell_why() -> None:
    def absent() -> dict[str, float]:
        raise AbsentError("no such library")

    def failing() -> dict[str, float]:
        raise ValueError("first line\nsecond line")

    assert attempt("parity", "a", lambda: {"error": 0.5}).values == {"error": 0.5}
    assert attempt("parity", "a", absent) == Entry("parity", "a", "absent", {}, "no such library")
    failed = Entry("parity", "a", "failed", {}, "ValueError: first line")
    assert attempt("parity", "a", failing) == failed


@pytest.mark.parametrize("off", [1.0, float("nan")])
def test_parity_that_is_missed_fails(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu_parity.Case("cross", "fp32", "cond-first", "full")
    plain = gpu_parity.BACKENDS["torch"]
    monkeypatch.setattr(gpu_parity, "BACKENDS", {"torch": plain})
    (right,) = gpu_parity.parity("cpu", [case])
    assert (right.status, right.values["error"]) == ("measured", 0)

    wrong = {"wrong": lambda *given: [out + off for out in plain(*given)]}
    monkeypatch.setattr(gpu_parity, "BACKENDS", wrong)
    (entry,) = gpu_parity.parity("cpu", [case])
    assert (entry.status, entry.reason) == ("failed", "error above 2e-05")


def test_every_case_is_there_once() -> None:
    cases = gpu_parity.cases()
    assert len(set(cases)) == len(cases) == 2 * 3 * 2 * 6
    assert set(gpu_parity.cases(tiny=True)) < set(cases)


@pytest.mark.parametrize("left", [74, 52, 37, 24])
def test_plans_leave_what_is_asked(left: int) -> None:
    shape = ModelShape(4, 32, 2, 64, 5, 2)
    program = capture(seeded(Denoiser(shape)), arguments(shape, 0, torch.float32), cfg="cond-first")
    plan = plan_with(program, 20, left)
    assert left - 1 <= 100 * attention_left(plan, program) <= left
    assert set(plan.cells[0].values()) == {Method.FULL}
    assert schedule(program, plan).slots
    assert attention_left(Plan.uniform(program, 20, "full"), program) == 1
    assert attention_left(Plan.uniform(program, 20, "ast"), program) == pytest.approx(1 / 20)


def test_levels_are_of_the_models_timed() -> None:
    assert set(LEVELS) == set(SHAPES)


def test_the_kernel_is_absent_without_gpu_and_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(AbsentError, match="need a GPU"):
        check_kernel("cpu")
    shape = AttentionShape(1, 1, 16, 32)
    found = {entry.name: entry.status for entry in windows(shape, torch.float32, "cpu", 1)}
    assert found[f"{shape}: band, Triton"] == "absent"
    assert found[f"{shape}: band, torch under a mask"] == "measured"


def test_a_table_of_a_gpu_is_no_dry_run() -> None:
    entries = [
        Entry("windows", "band", "measured", {"median_ms": 1.23456, "ok": True}),
        Entry("windows", "cuDNN", "absent", {}, "torch has no such kernel"),
    ]
    machine = {**describe("cpu"), "gpu": "Some GPU", "driver": None}
    table = markdown(entries, machine, dry_run=False)
    assert table.startswith("# Some GPU\n")
    assert "dry run" not in table
    assert "| band | 1.23 | True |" in table
    assert "- cuDNN: absent, torch has no such kernel" in table
    assert "driver" in table.partition("Absent: ")[2].splitlines()[0]
