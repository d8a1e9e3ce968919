"""`ditc diff` and `ditc inspect --why`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ditc.passes import Method, Origin, Plan, Window
from ditc.runtime.errors import BundleError, PlanError
from ditc.runtime.variants import Index
from ditc.tools.comparing import diff, explain

from .compiled import small_bundle
from .samples import sample

SITE = "transformer_blocks.0.attn1"


def saved(path: Path, plan: Plan) -> Path:
    plan.save(path)
    return path


def full() -> Plan:
    return Plan.uniform(sample("dit", "cond-first").program, 3, "full")


def test_a_plan_that_leaves_less_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = full().replace(1, SITE, "ast")
    diff(saved(tmp_path / "a", full()), saved(tmp_path / "b", changed))
    site = changed.cost.sites[SITE].full / (changed.cost.full * 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"step    1  {SITE}: full -> ast"
    assert lines[1] == (
        f"1 of 9 cells differ; 100.0% of the model's multiply-adds left become {1 - site:.1%} "
        f"({-site:+.1%})"
    )


def test_plans_that_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff(saved(tmp_path / "a", full()), saved(tmp_path / "b", full()))
    assert capsys.readouterr().out == "0 of 9 cells differ, nor does what they cost\n"


def test_windows_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where none of them is used, the plans cost the same."""
    wide = replace(full(), windows={**full().windows, SITE: Window(4, 2)})
    places = saved(tmp_path / "a", full()), saved(tmp_path / "b", wide)
    diff(*places)
    assert capsys.readouterr().out.splitlines() == [
        f'window     {SITE}: {{"radius": 3, "block": 1}} -> {{"radius": 4, "block": 2}}',
        "0 of 9 cells differ; 100.0% of the model's multiply-adds left become 100.0% (+0.0%)",
    ]
    diff(*places, as_json=True)
    assert json.loads(capsys.readouterr().out)["windows"] == [
        {"site": SITE, "from": {"radius": 3, "block": 1}, "to": {"radius": 4, "block": 2}}
    ]


def test_a_plan_that_leaves_the_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is step 0 of a model of nothing but sites, a third of three steps."""
    plan = replace(full(), cost=replace(full().cost, rest=0))
    last = dict.fromkeys(plan.sites, Method.AST)
    least = replace(plan, cells=(plan.cells[0], last, last))
    diff(saved(tmp_path / "a", least), saved(tmp_path / "b", plan))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "6 of 9 cells differ; 33.3% of the model's multiply-adds left become 100.0% (+200.0%)"
    )


def test_costs_of_other_batches_are_compared_as_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = full()
    twice = replace(
        plan.cost,
        rest=plan.cost.rest * 2,
        sites={
            name: replace(cost, projections=cost.projections * 2, attention=cost.attention * 2)
            for name, cost in plan.cost.sites.items()
        },
    )
    larger = replace(plan.replace(2, SITE, "ast"), cost=twice)
    diff(saved(tmp_path / "a", plan), saved(tmp_path / "b", larger), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["cells"] == [{"step": 2, "site": SITE, "from": "full", "to": "ast"}]
    before, after = record["multiply_adds_left"]
    assert before == 1.0
    assert after == pytest.approx(1 - plan.cost.sites[SITE].full / (plan.cost.full * 3))


def test_bundles_are_compared_by_their_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle(), bundle)
    plan = Plan.load(bundle / "plan.json")
    site = plan.sites[0]
    changed = plan.replace(1, site, "full" if plan.method(1, site) != "full" else "ast")
    diff(bundle, saved(tmp_path / "b", changed))
    told = capsys.readouterr().out
    assert told.startswith(f"step    1  {site}: {plan.method(1, site)} -> ")
    diff(bundle / "plan.json", tmp_path / "b")
    assert capsys.readouterr().out == told
    explain(bundle, 1, site)
    assert capsys.readouterr().out.startswith(f"step 1, {site}: {plan.method(1, site)}\n")
    changed.save(bundle / "plan.json")
    with pytest.raises(BundleError, match=r"plan\.json: has .*altered"):
        diff(bundle, bundle)


def test_folders_without_one_plan(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        diff(tmp_path, tmp_path)
    (tmp_path / "manifest.json").write_text(Index(("64x64", "8x8"), {}).to_json())
    with pytest.raises(BundleError, match=r"of one, 64x64\.plan\.json or 8x8\.plan\.json in it"):
        diff(tmp_path, tmp_path)


def test_plans_that_cannot_be_compared(tmp_path: Path) -> None:
    longer = Plan.uniform(sample("dit", "cond-first").program, 4, "full")
    with pytest.raises(PlanError, match=r"has 3 steps, .* has 4"):
        diff(saved(tmp_path / "a", full()), saved(tmp_path / "b", longer))
    other = Plan.uniform(sample("pixart", "cond-first").program, 3, "full")
    with pytest.raises(PlanError, match="speak of other sites"):
        diff(saved(tmp_path / "a", full()), saved(tmp_path / "b", other))


def test_why_a_cell_is_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {SITE: {Method.AST: 0.5, Method.WA_RS_ASC: 0.02}}
    found = replace(
        full().replace(1, SITE, "wa-rs+asc"),
        origin=Origin("greedy", 0.3, "relative", 0, 2, "0.1.0"),
        losses=({}, losses, {}),
    )
    path = saved(tmp_path / "plan.json", found)
    explain(path, 1, SITE)
    out = capsys.readouterr().out
    assert "greedy search, threshold 0.3 x 1 of 3 sites = 0.1" in out
    assert "ast        loss 0.5, 0.0% of full: not under it" in out
    assert "wa-rs+asc  loss 0.02" in out
    assert out.rstrip().endswith("under it, taken")
    explain(path, 2, SITE)
    assert "no candidate was good enough" in capsys.readouterr().out
    explain(path, 0, SITE)
    assert "step 0 is never compressed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("search", "head", "line"),
    [
        (
            "ilp, on other weights",
            "ilp search on other weights, squared errors of a step up to 0.3 over 3 sites; a "
            "method is ruled out from 1.5 x 0.3 / 3 = 0.15 on",
            "  ast        loss 0.5, 0.0% of full: ruled out",
        ),
        (
            "local, on other weights",
            "local search on other weights, threshold 0.3 x 1 of 3 sites = 0.1, at the site's own "
            "output",
            "  ast        loss 0.5, 0.0% of full: not under it",
        ),
        (
            "by hand",
            "by hand search, threshold 0.3; what it allows at a site isn't known",
            "  ast        loss 0.5, 0.0% of full: not taken",
        ),
    ],
)
def test_why_of_other_searches(
    search: str, head: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replace(
        full().replace(1, SITE, "wa-rs+asc"),
        origin=Origin(search, 0.3, "relative", 0, 2, "0.1.0"),
        losses=({}, {SITE: {Method.AST: 0.5, Method.WA_RS_ASC: 0.02}}, {}),
    )
    explain(saved(tmp_path / "plan.json", found), 1, SITE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [head, line]


def test_why_of_plans_without_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = Origin("greedy", 0.3, "relative", 0, 2, "0.1.0")
    told = {}
    for name, how in (("written", None), ("found", origin)):
        explain(saved(tmp_path / name, replace(full(), origin=how)), 1, SITE)
        told[name] = capsys.readouterr().out.splitlines()[-1]
    assert told == {
        "written": "the plan was written, not found: no losses are known",
        "found": "greedy search; the plan holds no losses of what it tried",
    }


def test_why_of_a_program_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(
        full(),
        origin=Origin("ilp", 0.3, "relative", 0, 2, "0.1.0"),
        losses=({}, {SITE: {Method.AST: 0.5, Method.ASC: 0.02}}, {}),
    )
    explain(saved(tmp_path / "plan.json", found), 1, SITE)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(": ruled out")
    assert second.endswith(": not among what saves most within the step's budget")


def test_why_counts_the_residual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = full().replace(2, SITE, "wa-rs")
    cost, window = plan.cost.sites[SITE], plan.windows[SITE]
    path = saved(tmp_path / "plan.json", plan)
    explain(path, 1, SITE, as_json=True)
    kept = json.loads(capsys.readouterr().out)["multiply_adds_left"]
    assert kept == cost.of(Method.FULL, window, keeps_residual=True) / cost.full > 1
    explain(path, 1, SITE)
    assert f"multiply-adds {kept:.1%} of full, its residual kept" in capsys.readouterr().out


def test_why_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {SITE: {Method.AST: 0.5, Method.WA_RS_ASC: 0.02}}
    plan = full().replace(1, SITE, "wa-rs+asc")
    explain(saved(tmp_path / "written.json", plan), 1, SITE, as_json=True)
    written = json.loads(capsys.readouterr().out)
    found = replace(
        plan, origin=Origin("greedy", 0.3, "relative", 0, 2, "0.1.0"), losses=({}, losses, {})
    )
    explain(saved(tmp_path / "found.json", found), 1, SITE, as_json=True)
    record = json.loads(capsys.readouterr().out)
    cost = plan.cost.sites[SITE]
    assert record == {
        "step": 1,
        "site": SITE,
        "method": "wa-rs+asc",
        "multiply_adds_left": cost.of(Method.WA_RS_ASC, plan.windows[SITE]) / cost.full,
        "search": "greedy",
        "threshold": pytest.approx(0.1),
        "losses": {"ast": 0.5, "wa-rs+asc": 0.02},
        "gated": [],
    }
    assert written == {**record, "search": None, "threshold": None, "losses": None}


def test_a_cell_that_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path / "plan.json", full())
    with pytest.raises(PlanError, match="step 3: the plan has steps 0 to 2"):
        explain(path, 3, SITE)
    with pytest.raises(PlanError, match="site nowhere: the plan has"):
        explain(path, 1, "nowhere")
