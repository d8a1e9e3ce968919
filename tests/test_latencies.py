"""Latencies: what they say of plans, and files that don't hold any."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditc.passes import Method, Plan, Program, Window
from ditc.runtime.errors import DitcError, PlanError
from ditc.tools.latencies import Latencies, SiteLatency
from ditc.tools.site_forms import SiteStates
from ditc.tools.space import space_of

from .samples import sample

FULL, AST, WA_RS, ASC = Method.FULL, Method.AST, Method.WA_RS, Method.ASC


def made(program: Program, **slower: float) -> Latencies:
    """Return made-up latencies: full 10 ms, asc 6, wa-rs 8, wa-rs+asc 5, ast 1."""
    ms = {FULL: 10.0, ASC: 6.0, WA_RS: 8.0, Method.WA_RS_ASC: 5.0, AST: 1.0}
    ms |= {Method(name): value for name, value in slower.items()}
    plan = Plan.uniform(program, 1, "full")
    return Latencies(
        target="onnx, CPUExecutionProvider",
        threads=2,
        batch=2,
        identity=program.identity,
        latents=program.latents.shape[1:],
        cfg=program.cfg,
        windows=plan.windows,
        step_ms=100.0,
        sites=dict.fromkeys(plan.sites, SiteLatency(ms, {FULL: 13.0, ASC: 7.5})),
        ditc="0.1.0",
    )


def program() -> Program:
    return sample("dit", "cond-first").program


def test_what_a_plan_takes() -> None:
    latencies = made(program())
    plan = Plan.uniform(program(), 4, "full")
    first, second, third = plan.sites
    assert latencies.predicted_ms(plan) == 400.0
    plan = plan.replace(1, first, "ast").replace(3, second, "wa-rs").replace(2, third, "asc")
    # ast saves 9, asc 4, wa-rs 2; the residual that step 3 reads is kept at step 2, for 3 ms
    assert latencies.predicted_ms(plan) == pytest.approx(400 - 9 - 4 - 2 + 3)
    plan = plan.replace(2, second, "asc")  # which keeps it for 1.5 ms
    assert latencies.predicted_ms(plan) == pytest.approx(400 - 9 - 4 - 2 - 4 + 1.5)


def test_no_step_takes_less_than_nothing() -> None:
    """Three sites of 10 ms each were measured alone, the step they are in took 20 ms."""
    latencies = replace(made(program()), step_ms=20.0)
    assert latencies.predicted_ms(Plan.uniform(program(), 3, "ast")) == 20.0


def test_keeping_a_residual_saves_nothing() -> None:
    """Measured alone, full attention took less with the residual than without: noise."""
    latencies = made(program())
    sites = {site: SiteLatency(found.ms, {FULL: 0.5}) for site, found in latencies.sites.items()}
    noisy = replace(latencies, step_ms=1.0, sites=sites)
    assert noisy.predicted_ms(Plan.uniform(program(), 2, "wa-rs")) == 1.0


def test_equally_fast_is_not_faster() -> None:
    latencies = made(program(), asc=10.0, ast=10.1)
    site = Plan.uniform(program(), 1, "full").sites[0]
    assert [latencies.faster(site, m) for m in (AST, ASC, WA_RS, FULL)] == [
        False,
        False,
        True,
        False,
    ]
    unmeasured = replace(latencies, sites={site: SiteLatency({FULL: 1.0}, {})})
    assert not unmeasured.faster(site, AST)


def test_a_method_that_is_not_faster_is_no_candidate() -> None:
    latencies = made(program(), **{"wa-rs": 11.0, "ast": 10.0})
    space = space_of(program(), latencies=latencies)
    assert space.gate is not None
    assert space.gate.target == "onnx, CPUExecutionProvider"
    for site in space.windows:
        assert space.candidates[site] == (Method.WA_RS_ASC, ASC)
        assert space.gate.refused[site] == (AST, WA_RS)


def test_the_fastest_method_is_tried_first() -> None:
    """Of those that are equally fast the paper's first; a window pays for its residual."""
    space = space_of(program(), latencies=made(program(), **{"wa-rs+asc": 8.0, "asc": 5.5}))
    everything = (AST, ASC, Method.WA_RS_ASC, WA_RS)
    states = SiteStates(space)
    for site in space.windows:
        assert space.candidates[site] == (AST, Method.WA_RS_ASC, WA_RS, ASC)
        states.note(site, FULL)  # 3 ms more with its residual, of which a window saves 2
        assert states.candidates(site) == (AST, ASC)
        assert states.gain(site, WA_RS) == -1
        states.note(site, AST)
        assert states.candidates(site) == (AST, ASC)
        states.note(site, ASC)  # 2 ms, as much as a window saves
        assert states.candidates(site) == (AST, ASC)
        assert states.gain(site, WA_RS) == 0
        states.note(site, WA_RS)  # who pays
        assert states.candidates(site) == everything
        assert states.gain(site, WA_RS) == 2
        states.note(site, FULL)
        assert states.candidates(site) == (AST, ASC)


def test_files_hold_them_all(tmp_path: Path) -> None:
    for latencies in (made(program()), replace(made(program()), threads=None)):
        latencies.save(tmp_path / "latency.json")
        assert Latencies.load(tmp_path / "latency.json") == latencies
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(DitcError, match=r"taken: can't be written: "):
        made(program()).save(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


Edit = Callable[[dict[str, Any]], object]
SITE = "transformer_blocks.0.attn1"
BROKEN: dict[str, tuple[Edit, str]] = {
    "format": (lambda r: r.update(format="x"), 'no latencies: expected .* "format"'),
    "newer": (lambda r: r.update(version=2), "version 2 is newer than 1: upgrade ditc"),
    "missing": (lambda r: r.pop("step_ms"), "latencies: field 'step_ms' is missing; measure again"),
    "unknown": (lambda r: r.update(extra=1), "latencies: unknown field 'extra'"),
    "zero": (lambda r: r.update(step_ms=0), "step_ms: is 0, expected milliseconds above 0"),
    "text": (lambda r: r["sites"][SITE]["ms"].update(ast="1"), r"ms\.ast: expected a number"),
    "method": (lambda r: r["sites"][SITE]["ms"].update(half=1), "is 'half', expected one of"),
    "no full": (lambda r: r["sites"][SITE]["ms"].pop("full"), "'full' is missing"),
    "keeping": (lambda r: r["sites"][SITE]["keeping_ms"].update(ast=1), "ast isn't expected there"),
    "sites": (lambda r: r["sites"].pop(SITE), "is in one of windows and sites"),
    "no sites": (lambda r: r.update(sites={}, windows={}), "windows: names no site"),
    "window": (
        lambda r: r["windows"][SITE].update(block=0),
        "block: expected an integer from 1 to",
    ),
    "threads": (lambda r: r.update(threads=0), "threads: is 0, expected 1"),
    "cfg": (lambda r: r["for"].update(cfg="both"), "for.cfg: is 'both'"),
    "target": (lambda r: r.update(target="a\nb"), "target: expected printable text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = BROKEN[name]
    record = json.loads(made(program()).to_json())
    edit(record)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(record))
    with pytest.raises(PlanError, match=rf"^latencies {path}: .*{message}"):
        Latencies.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"step_ms": 100.0', '"step_ms": 100.0, "step_ms": 1.0', "key 'step_ms' occurs twice"),
        ('"step_ms": 100.0', '"step_ms": NaN', "holds the number NaN"),
        ('"step_ms": 100.0', '"step_ms": 1e999', "holds the number 1e999"),
        ('"step_ms": 100.0', '"step_ms"', "is no JSON"),
    ],
)
def test_text_that_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(made(program()).to_json().replace(old, new))
    with pytest.raises(PlanError, match=message):
        Latencies.load(path)
    with pytest.raises(PlanError, match="can't be read"):
        Latencies.load(tmp_path / "none.json")


def test_latencies_of_something_else() -> None:
    other = sample("pixart", "cond-first").program
    with pytest.raises(PlanError, match=r"latencies are of .*DiT.*, the model is .*PixArt"):
        space_of(other, latencies=made(program()))
    configured = replace(made(program()), identity=replace(program().identity, config_sha256="0"))
    with pytest.raises(PlanError, match="the model is another configuration of it"):
        space_of(program(), latencies=configured)
    with pytest.raises(PlanError, match=r"latencies are of latents \[4, 8, 9\], CFG cond-first"):
        space_of(program(), latencies=replace(made(program()), latents=(4, 8, 9)))
    with pytest.raises(PlanError, match="CFG none; the model has"):
        space_of(program(), latencies=replace(made(program()), cfg=None))
    windows = {site: Window(1) for site in made(program()).windows}
    with pytest.raises(PlanError, match=r"latencies of site .* are of .*, the search has Window"):
        space_of(program(), windows, made(program()))
