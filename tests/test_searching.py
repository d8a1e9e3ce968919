"""`ditc search`: searches that are stopped, budgets, gates, and options at fault."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from ditc.export import sampler_table
from ditc.passes import Goal, Method, Plan, capture
from ditc.tools import journal, searching
from ditc.tools.cli import main
from ditc.tools.glyphs import demo_scheduler
from ditc.tools.models import demo_recording
from ditc.tools.space import space_of

from . import models
from .samples import sample
from .test_latencies import made

Capture = pytest.CaptureFixture[str]
COMMON = ("search", "demo", "--steps", "4", "--calibration", "1", "--seed", "3")


class StoppedError(Exception):
    pass


def stopped(options: tuple[str, ...], place: Path, writes: int) -> None:
    """Let the journal be written so many times, then stop as if killed behind the next."""
    write, done = journal.Journal.write, []

    def counted(self: journal.Journal, checkpoint: object) -> None:
        write(self, checkpoint)  # type: ignore[arg-type]
        done.append(1)
        if len(done) > writes:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "write", counted)
        with pytest.raises(StoppedError):
            main([*options, "-o", str(place)])


@pytest.fixture(scope="module")
def latency(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up latencies of the demo: windows slower than full attention."""
    path = tmp_path_factory.mktemp("latency") / "latency.json"
    made(demo_recording().capture(), **{"wa-rs": 12.0, "wa-rs+asc": 11.0}).save(path)
    return path


@pytest.mark.parametrize("search", ["greedy", "local", "ilp"])
def test_stopped_it_ends_in_the_same_plan(search: str, tmp_path: Path, capsys: Capture) -> None:
    options = (*COMMON, "--search", search, "--threshold", "0.5")
    assert main([*options, "-o", str(tmp_path / "whole.json")]) == 0
    out = capsys.readouterr().out
    told = "% of what whole runs of" if search == "greedy" else "the search computed as much as "
    assert told in out
    for writes in (0, 2):
        place = tmp_path / "plan.json"
        stopped(options, place, writes)
        capsys.readouterr()
        assert main([*options, "-o", str(place)]) == 0
        assert f"going on behind step {writes}\n" in capsys.readouterr().err
        assert place.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "whole.json"]


def test_a_journal_of_another_search_is_not_gone_on_with(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "plan.json"
    stopped((*COMMON, "--search", "local"), place, 1)
    capsys.readouterr()
    assert main([*COMMON, "--search", "ilp", "-o", str(place)]) == 0
    assert "going on" not in capsys.readouterr().err


def test_a_journal_of_another_version_is_not_gone_on_with(tmp_path: Path, capsys: Capture) -> None:
    place, options = tmp_path / "plan.json", (*COMMON, "--search", "local")
    stopped(options, place, 1)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "version", lambda _: "0.0.0")
        assert main([*options, "-o", str(place)]) == 0
    assert "going on" not in capsys.readouterr().err


def test_a_journal_holds_for_the_constants_of_the_model() -> None:
    program = demo_recording().capture()
    options = Namespace(guidance_scale=4.0, seed=0, search="local")
    table = sampler_table(demo_scheduler(), 4)
    first, second = (
        searching._arguments(options, space_of(replace(program, constants={"scale": value})), table)
        for value in (1.0, 2.0)
    )
    assert {key for key in first if first[key] != second[key]} == {"constants"}


def test_a_journal_holds_for_the_weights_and_the_conditioning() -> None:
    model = sample("dit", "cond-first")
    others = {
        "weights": capture(models.dit(seed=1), models.dit_kwargs(), cfg="cond-first"),
        "latents": capture(models.dit(), models.dit_kwargs(seed=1), cfg="cond-first"),
    }
    example = model.program.example
    labels = {**example, "class_labels": example["class_labels"].flip(0)}
    others["conditioning"] = replace(model.program, example=labels)
    own = searching._digest(model.program)
    found = {name: searching._digest(program) != own for name, program in others.items()}
    assert found == {"weights": True, "latents": False, "conditioning": True}


def test_a_budget_is_met_and_stopped_it_ends_in_the_same_plan(
    tmp_path: Path, latency: Path, capsys: Capture
) -> None:
    options = (*COMMON, "--search", "local", "--latency", str(latency), "--budget-ms", "290")
    whole = tmp_path / "whole.json"
    assert main([*options, "-o", str(whole)]) == 0
    printed = capsys.readouterr().out
    assert " ms a generation predicted, " in printed
    assert "the least of " in printed
    plan = Plan.load(whole)
    assert plan.pareto is not None
    assert plan.origin is not None
    taken = {tried.threshold: tried for tried in plan.pareto}[plan.origin.threshold]
    assert taken.latency_ms is not None
    assert taken.latency_ms <= 290
    met = [t.threshold for t in plan.pareto if t.latency_ms is not None and t.latency_ms <= 290]
    assert min(met) == plan.origin.threshold
    assert plan.origin.goal == Goal(budget_ms=290)
    assert [t.threshold for t in plan.pareto] == sorted(t.threshold for t in plan.pareto)
    # the same threshold by itself is the same plan
    again = tmp_path / "again.json"
    delta = ("--threshold", str(plan.origin.threshold))
    assert main([*options[:-2], *delta, "-o", str(again)]) == 0
    assert Plan.load(again).cells == plan.cells
    for writes in (2, 9):  # within the uncompressed generation, and behind a search
        place = tmp_path / "plan.json"
        stopped(options, place, writes)
        assert main([*options, "-o", str(place)]) == 0
        assert place.read_bytes() == whole.read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["again.json", "plan.json", "whole.json"]


def test_what_was_refused_is_told(tmp_path: Path, latency: Path, capsys: Capture) -> None:
    place = tmp_path / "plan.json"
    for search in ("greedy", "local", "ilp"):
        options = ("--search", search, "--latency", str(latency), "--threshold", "3")
        assert main([*COMMON, *options, "-o", str(place)]) == 0
        plan = Plan.load(place)
        assert {method for row in plan.cells for method in row.values()} <= {
            Method.FULL,
            Method.ASC,
            Method.AST,
        }
        found = json.loads(place.read_text())["found"]
        assert found["target"] == "onnx, CPUExecutionProvider"
        assert found["gated"] == {site: ["wa-rs+asc", "wa-rs"] for site in plan.sites}
    capsys.readouterr()
    assert main(["inspect", str(place), "--why", "1", plan.sites[0]]) == 0
    out = capsys.readouterr().out
    assert "wa-rs      never tried: not faster than full here on onnx, CPUExecutionProvider" in out
    assert main(["report", str(place), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "wa-rs+asc at 6 of 6 sites, wa-rs at 6 of 6 sites, on onnx, CPUExecution" in page
    assert '"target":"onnx, CPUExecutionProvider"' in page


def test_options_at_fault(tmp_path: Path, latency: Path, capsys: Capture) -> None:
    place = str(tmp_path / "plan.json")

    def told(*options: str) -> str:
        assert main([*COMMON, "-o", place, *options]) == 1
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err

    assert "--budget-ms needs --latency, a file of 'ditc bench" in told("--budget-ms", "10")
    assert "latencies none.json: can't be read" in told("--latency", "none.json")
    assert "is out of reach: the best is " in told("--speedup", "50", "--search", "local")
    assert "needs no plan" in told("--speedup", "0.9")
    for wrong in ("nan", "inf", "-1", "0", "2e12"):
        assert f"--threshold {float(wrong):g}: expected a pos" in told(f"--threshold={wrong}")
    assert "--speedup nan: expected a positive number up to 1e+12" in told("--speedup", "nan")
    assert "--budget-ms nan: expected a positive n" in told(
        "--latency", str(latency), "--budget-ms", "nan"
    )
    assert "--guidance-scale inf: expected a number up to 1e+12" in told("--guidance-scale", "inf")
    assert f"--seed {2**63 + 1}: expected an integer up to {2**63}" in told(
        "--seed", f"{2**63 + 1}"
    )
    with pytest.raises(SystemExit):
        main([*COMMON, "-o", place, "--speedup", "2", "--threshold", "0.1"])
    assert "not allowed with argument" in capsys.readouterr().err
