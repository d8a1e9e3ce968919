"""How a plan was found, in its file: what was refused, and what else was tried."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditc.passes import Gate, Goal, Method, Origin, Plan, Tried
from ditc.runtime.errors import PlanError
from ditc.tools.comparing import explain
from ditc.tools.report_data import read_facts
from ditc.tools.report_html import Extras, page

from .samples import sample

SITE = "transformer_blocks.0.attn1"
GATE = Gate("onnx, CPUExecutionProvider", {SITE: (Method.WA_RS, Method.ASC)})
TRIED = (Tried(0.1, 0.0, 400.0, 1.0), Tried(0.4, 0.25, 310.5, 0.75))


def plan(
    search: str = "ilp", tried: tuple[Tried, ...] | None = TRIED, goal: Goal | None = None
) -> Plan:
    losses = {SITE: {Method.AST: 0.5, Method.WA_RS_ASC: 0.1}}
    return replace(
        Plan.uniform(sample("dit", "cond-first").program, 3, "full").replace(1, SITE, "wa-rs+asc"),
        origin=Origin(search, 0.4, "relative", 0, 2, "0.1.0", GATE, goal),
        losses=({}, losses, {SITE: {Method.AST: 0.15}}),
        pareto=tried,
    )


@pytest.mark.parametrize("tried", [None, TRIED, (Tried(0.1, 0.0, None, 0.5),)])
def test_files_hold_it(tmp_path: Path, tried: tuple[Tried, ...] | None) -> None:
    path = tmp_path / "plan.json"
    made = plan(tried=tried)
    made.save(path)
    read = Plan.load(path)
    assert (read.origin, read.pareto) == (made.origin, tried)
    assert read.to_json() == made.to_json()
    assert ("pareto" in json.loads(path.read_text())) == (tried is not None)


@pytest.mark.parametrize(
    ("goal", "record"),
    [(Goal(speedup=1.5), {"speedup": 1.5}), (Goal(budget_ms=200), {"budget_ms": 200})],
)
def test_files_hold_what_was_to_be_reached(
    tmp_path: Path, goal: Goal, record: dict[str, float]
) -> None:
    path = tmp_path / "plan.json"
    made = plan(goal=goal)
    made.save(path)
    assert json.loads(path.read_text())["found"].items() >= record.items()
    assert Plan.load(path).origin == made.origin
    found = dict(read_facts(path).notes)["found by"]
    assert found == f"ilp search, δ = 0.4, the least for {goal}, 2 samples, seed 0"
    assert str(goal) in ("a speedup of 1.5", "a budget of 200 ms")


def test_long_budgets_are_told_in_full() -> None:
    assert str(Goal(budget_ms=1234567.5)) == "a budget of 1234567.5 ms"


def test_a_plan_found_without_latencies_has_neither_key(tmp_path: Path) -> None:
    made = plan()
    assert made.origin is not None
    record = json.loads(replace(made, origin=replace(made.origin, gate=None)).to_json())
    assert not {"target", "gated", "speedup", "budget_ms"} & set(record["found"])
    assert made.replace(1, SITE, "ast").pareto is None


Edit = Callable[[dict[str, Any]], object]
BROKEN: dict[str, tuple[Edit, str]] = {
    "target alone": (lambda r: r["found"].pop("gated"), "has one of target and gated"),
    "gated alone": (lambda r: r["found"].pop("target"), "has one of target and gated"),
    "list": (lambda r: r["found"].update(gated=[]), "found.gated: expected an object, found list"),
    "site": (lambda r: r["found"].update(gated={"x": []}), "site 'x' is none of the plan's"),
    "method": (lambda r: r["found"]["gated"].update({SITE: ["half"]}), "unknown method 'half'"),
    "methods": (lambda r: r["found"]["gated"].update({SITE: "asc"}), "expected a list"),
    "text": (lambda r: r["found"].update(target=""), "found.target: expected printable text"),
    "goals": (lambda r: r["found"].update(speedup=2, budget_ms=3), "both speedup and budget_ms"),
    "goal": (lambda r: r["found"].update(budget_ms=0), "budget_ms: is 0, expected a positive"),
    "speedup": (lambda r: r["found"].update(speedup="2"), "found.speedup: expected a number"),
    "empty": (lambda r: r.update(pareto=[]), "pareto: has 0 entries, expected 1 to 200"),
    "null": (lambda r: r.update(pareto=None), "pareto: expected a list, found nothing"),
    "many": (lambda r: r.update(pareto=r["pareto"] * 101), "has 202 entries"),
    "field": (lambda r: r["pareto"][0].pop("loss"), r"pareto\[0\]: field 'loss' is missing"),
    "unknown": (lambda r: r["pareto"][0].update(x=1), r"pareto\[0\]: unknown field 'x'"),
    "negative": (lambda r: r["pareto"][1].update(loss=-1), r"pareto\[1\].loss: is -1, expected no"),
    "number": (lambda r: r["pareto"][1].update(loss="1"), r"pareto\[1\].loss: expected a number"),
    "mixed": (lambda r: r["pareto"][1].pop("latency_ms"), "some entries have latency_ms"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = BROKEN[name]
    record = json.loads(plan().to_json())
    edit(record)
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan.json")


def test_why_a_program_chose_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    explain(path, 1, SITE)
    out = capsys.readouterr().out
    assert "a method is ruled out from 1.5 x 0.4 / 3 = 0.2 on" in out
    assert "ast        loss 0.5, 0.0% of full: ruled out" in out
    assert out.count("under it, taken") == 1
    assert "wa-rs      never tried: not faster than full here on onnx, CPUExecution" in out
    explain(path, 2, SITE)
    out = capsys.readouterr().out
    assert "not among what saves most within the step's budget" in out
    plan("local").save(path)
    explain(path, 1, SITE)
    out = capsys.readouterr().out
    assert "local search, threshold 0.4 x 1 of 3 sites = 0.1333, at the site's own output" in out


def test_the_report_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan().save(path)
    facts = read_facts(path)
    assert facts.searched is not None
    assert facts.searched.thresholds == pytest.approx((0.2, 0.2, 0.2))
    assert facts.searched.target == GATE.target
    assert facts.searched.gated == (("wa-rs", "asc"), (), ())
    refused = f"wa-rs at 1 of 3 sites, asc at 1 of 3 sites, on {GATE.target}"
    assert ("refused as not faster", refused) in facts.notes
    assert facts.points is not None
    assert [(p.cost, p.loss) for p in facts.points] == [(400.0, 0.0), (310.5, 0.25)]
    assert all(point.measured for point in facts.points)
    text = page(facts, Extras(), "0.1.0")
    assert 'class="pareto"' in text
    assert "Costs are predicted" in text
    assert "no --pareto given" not in text
    plan(tried=(Tried(0.1, 0.0, None, 0.5),)).save(path)
    facts = read_facts(path)
    assert facts.points is not None
    assert (facts.points[0].cost, facts.points[0].measured) == (0.5, False)
