"""Plans: what holds of them, their file, and every way a file or a use can be at fault."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import Identity, Method, Origin, Plan, Program, TileWindow, Window, capture
from ditc.passes.plan_file import parse_plan
from ditc.runtime.errors import PlanError

from . import models
from .samples import METHODS, mixed, sample

SITE = "attentions.1"
SITES = ("attentions.0", SITE)


def program(cfg: str | None = "cond-first") -> Program:
    return sample("fused-qkv", cfg).program


def record() -> dict[str, object]:
    return json.loads(Plan.uniform(program(), 3, "wa-rs").to_json())


def load(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    return Plan.load(path)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(PlanError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_uniform_leaves_step_0_full() -> None:
    plan = Plan.uniform(program(), 4, "ast", scheduler="DDIMScheduler")
    assert plan.sites == ("attentions.0", "attentions.1")
    assert [plan.method(step, SITE) for step in range(4)] == [Method.FULL, *[Method.AST] * 3]
    assert plan.windows == dict.fromkeys(plan.sites, Window(3))
    assert (plan.latents, plan.cfg, plan.steps) == ((25, 16), "cond-first", 4)
    assert plan.scheduler == "DDIMScheduler"


def test_uniform_speaks_of_eligible_sites_only() -> None:
    pixart = sample("pixart", "cond-first").program
    assert len(pixart.sites) == 4
    plan = Plan.uniform(pixart, 2, "asc")
    assert plan.sites == ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")
    assert plan.method(1, "transformer_blocks.0.attn2") is Method.FULL


def test_replace_changes_one_cell_of_a_new_plan() -> None:
    plan = Plan.uniform(program(), 3, "full")
    changed = plan.replace(step=2, site=SITE, method="wa-rs+asc")
    differing = [
        (step, site)
        for step in range(3)
        for site in plan.sites
        if changed.method(step, site) is not plan.method(step, site)
    ]
    assert differing == [(2, SITE)]
    assert changed.method(2, SITE) is Method.WA_RS_ASC


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 5))
def test_round_trip(seed: int, steps: int, block: int) -> None:
    model = sample("fused-qkv", "uncond-first")
    plan = mixed(model, seed, window=Window(2 * block, block), steps=steps)
    again = json.loads(plan.to_json())
    assert parse_plan(plan.to_json(), "text") == plan
    assert parse_plan(plan.to_json(), "text").to_json() == plan.to_json()
    assert again["for"]["steps"] == steps
    assert again["windows"][SITE] == {"radius": 2 * block, "block": block}


def test_no_text_is_no_text_wherever_it_lies() -> None:
    given = record()
    site = next(iter(given["cost"]["sites"].values()))
    site["text"] = [site["tokens"], site["tokens"]]
    plan = parse_plan(json.dumps(given), "text")
    assert parse_plan(plan.to_json(), "text") == plan


def test_save_and_load(tmp_path: Path) -> None:
    plan = mixed(sample("dit", "cond-first"), 5)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(str(tmp_path / "plan.json")) == plan
    assert (tmp_path / "plan.json").read_text(encoding="utf-8") == plan.to_json()


TEXTS = {
    "empty": ("", "no valid JSON: Expecting value"),
    "no JSON": ("\x80\x04pickle", "no valid JSON: Expecting value"),
    "cut off": ('{"format": "ditc-plan"', "no valid JSON: Expecting ',' delimiter"),
    "a list": ("[]", 'no plan: expected an object with "format": "ditc-plan"'),
    "another format": ('{"format": "ditc-bundle"}', "no plan: expected an object"),
    "not a number": ('{"version": NaN}', "no valid JSON: NaN is no finite number"),
    "infinite": ('{"version": -Infinity}', "no valid JSON: -Infinity is no finite number"),
    "duplicate key": ('{"format": 1, "format": 2}', "no valid JSON: duplicate key 'format'"),
    "deep": ("[" * 100_000 + "]" * 100_000, "no valid JSON: maximum recursion depth exceeded"),
    "huge number": ('{"version": ' + "9" * 5000 + "}", "no valid JSON: Exceeds the limit"),
    "overflow": (
        '{"format": "ditc-plan", "version": 1e999}',
        "version: expected an integer from 1 to 2147483648, found inf",
    ),
    "duplicate inside": (
        '{"format": "ditc-plan", "version": 1, "windows": {"a": {}, "a": {}}}',
        "no valid JSON: duplicate key 'a'",
    ),
    "no version": ('{"format": "ditc-plan"}', "version: expected an integer from 1"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_plan(name: str, tmp_path: Path) -> None:
    text, reason = TEXTS[name]
    message = refusal(lambda: load(tmp_path, text))
    assert message.startswith(f"plan {tmp_path / 'plan.json'}: {reason}")


def change(*path: str, to: object) -> Callable[[dict[str, object]], None]:
    def apply(plan: dict[str, object]) -> None:
        holder: object = plan
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = to

    return apply


def drop(*path: str) -> Callable[[dict[str, object]], None]:
    def apply(plan: dict[str, object]) -> None:
        holder: object = plan
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]

    return apply


FOUND = Origin("greedy", 0.3, "relative", 0, 2, "0.1.0").to_json()
FIELDS = {
    "newer": (change("version", to=2), "version 2 is newer than 1: upgrade ditc to read it"),
    "true": (change("version", to=True), "version: expected an integer from 1 to 2147483648"),
    "zero": (change("version", to=0), "version: expected an integer from 1 to 2147483648, found 0"),
    "unknown": (change("note", to="x"), "plan: unknown field 'note'"),
    "line": (change("a\nb", to="x"), "plan: unknown field 'a\\nb'"),
    "missing": (drop("windows"), "plan: field 'windows' is missing"),
    "for": (change("for", to=[]), "for: expected an object, found list"),
    "in for": (change("for", "seed", to=1), "for: unknown field 'seed'"),
    "model": (change("for", "model", to=None), "for.model: expected printable text, found nothing"),
    "digest": (
        change("for", "config_sha256", to="7\x1b[2J"),
        "for.config_sha256: expected printable text, found '7\\x1b[2J'",
    ),
    "latents": (change("for", "latents", to="3"), "for.latents: expected a list, found str"),
    "size": (change("for", "latents", to=[3, 0]), "for.latents: expected an integer from 1"),
    "cfg": (
        change("for", "cfg", to="both"),
        "for.cfg: expected cond-first, uncond-first, separate, separate-uncond-first or null",
    ),
    "scheduler": (change("for", "scheduler", to=1), "for.scheduler: expected printable text"),
    "a million steps": (
        change("for", "steps", to=1_000_000),
        "for.steps: expected an integer from 1 to 10000, found 1000000",
    ),
    "no steps": (change("for", "steps", to=0), "for.steps: expected an integer from 1 to 10000"),
    "half a step": (change("for", "steps", to=2.5), "for.steps: expected an integer from 1 to"),
    "windows": (change("windows", to=3), "windows: expected an object, found int"),
    "window": (change("windows", SITE, to=3), f"windows.{SITE}: expected an object, found int"),
    "radius": (
        change("windows", SITE, "radius", to=-1),
        f"windows.{SITE}.radius: expected an integer from 0 to 2147483648, found -1",
    ),
    "block": (
        change("windows", SITE, "block", to=2),
        f"windows.{SITE}: radius 3 is no multiple of its block 2",
    ),
    "grid": (
        change("windows", SITE, to={"grid": [4, 6], "tile": [2, 2], "reach": [1, 1]}),
        f"windows.{SITE}.grid: holds 24 tokens, the site has 25",
    ),
    "tile": (
        change("windows", SITE, to={"grid": [5, 5], "tile": [2, 6], "reach": [1, 1]}),
        f"windows.{SITE}: tile 2×6 on a grid of 5×5: expected at least 1 and no more than the "
        "grid along each axis, and no grid over 65536",
    ),
    "reach": (
        change("windows", SITE, to={"grid": [5, 5], "tile": [2, 2], "reach": [1]}),
        f"windows.{SITE}.reach: expected a number for each of two or three axes",
    ),
    "in window": (change("windows", SITE, "x", to=1), f"windows.{SITE}: unknown field 'x'"),
    "site name": (
        change("windows", "a\nb", to={"radius": 0, "block": 1}),
        "windows: site name 'a\\nb' has characters that can't be printed",
    ),
    "cells": (change("cells", to={}), "cells: expected a list, found dict"),
    "more cells": (change("cells", to=[["full"] * 2] * 4), "cells: expected 3 steps, found 4"),
    "short row": (
        change("cells", to=[["full"] * 2] * 2 + [["full"]]),
        "step 2: expected 2 methods, found 1",
    ),
    "no row": (change("cells", to=[["full"] * 2] * 2 + ["full"]), "step 2: expected a list"),
    "method": (
        change("cells", to=[["full"] * 2] * 2 + [["full", "wars"]]),
        f"step 2, site {SITE}: unknown method 'wars', expected one of full, asc, wa-rs, wa-rs+asc",
    ),
    "a compressed step 0": (
        change("cells", to=[["full", "ast"]] + [["full"] * 2] * 2),
        f"step 0, site {SITE}: is ast, expected full: nothing is kept before it",
    ),
    "a site without cost": (
        drop("cost", "sites", SITE),
        f"cost.sites: field '{SITE}' is missing",
    ),
    "one end of the text": (
        change("cost", "sites", SITE, "text", to=[5]),
        f"cost.sites.{SITE}.text: expected two numbers, found 1",
    ),
    "text beyond the tokens": (
        change("cost", "sites", SITE, "text", to=[0, 26]),
        f"cost.sites.{SITE}.text: expected an integer from 0 to 25, found 26",
    ),
    "text that ends before it begins": (
        change("cost", "sites", SITE, "text", to=[25, 0]),
        f"cost.sites.{SITE}.text: is 25 to 0, expected a part at one end of 25 tokens",
    ),
    "nothing but text": (
        change("cost", "sites", SITE, "text", to=[0, 25]),
        f"cost.sites.{SITE}.text: is 0 to 25, expected a part at one end of 25 tokens",
    ),
    "text in the middle": (
        change("cost", "sites", SITE, "text", to=[5, 9]),
        f"cost.sites.{SITE}.text: is 5 to 9, expected a part at one end of 25 tokens",
    ),
    "a site without window": (
        drop("windows", SITE),
        "step 0: expected 1 methods, found 2",
    ),
    "a cost without site": (
        change("cost", "sites", "x", to={"projections": 1, "attention": 1, "tokens": 1}),
        "cost.sites: unknown field 'x'",
    ),
    "guidance": (
        change("for", "guidance_scale", to=1e13),
        "for.guidance_scale: expected a number up to 1e+12, found a larger one",
    ),
    "short losses": (change("losses", to=[]), "losses: expected 3 steps, found 0"),
    "short row of losses": (
        change("losses", to=[[{}, {}], [{}], [{}, {}]]),
        "losses of step 1: expected 2, found 1",
    ),
    "a loss of no method": (
        change("losses", to=[[{}, {"none": 0.5}], [{}, {}], [{}, {}]]),
        f"losses of step 0, site {SITE}: unknown method 'none'",
    ),
    "a loss in words": (
        change("losses", to=[[{}, {"ast": "low"}], [{}, {}], [{}, {}]]),
        f"losses of step 0, site {SITE}: expected a number, found str",
    ),
    "a negative loss": (
        change("losses", to=[[{}, {}], [{}, {"ast": -0.5}], [{}, {}]]),
        f"losses of step 1, site {SITE}: is -0.5, expected no negative number",
    ),
    "a threshold of nothing": (
        change("found", to={**FOUND, "threshold": 0}),
        "found.threshold: is 0, expected a positive number",
    ),
    "found": (change("found", to="greedy"), "found: expected an object, found str"),
    "listed method": (
        change("cells", to=[["full"] * 2] * 2 + [["full", ["ast"]]]),
        f"step 2, site {SITE}: unknown method ['ast']",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_do_not_hold(name: str, tmp_path: Path) -> None:
    apply, reason = FIELDS[name]
    plan = record()
    apply(plan)
    message = refusal(lambda: load(tmp_path, json.dumps(plan)))
    assert message.startswith(f"plan {tmp_path / 'plan.json'}: {reason}")


def test_too_many_cells(tmp_path: Path) -> None:
    plan = record()
    plan["for"]["steps"] = 10_000
    plan["windows"] = {f"site{index}": {"radius": 1, "block": 1} for index in range(1001)}
    plan["cells"] = [0] * 10_000
    message = refusal(lambda: load(tmp_path, json.dumps(plan)))
    assert message.endswith("cells: 10010000 are more than 10000000")


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    assert "can't be read: No such file or directory" in refusal(
        lambda: Plan.load(tmp_path / "none.json")
    )
    assert "can't be read: Is a directory" in refusal(lambda: Plan.load(tmp_path))
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    assert "can't be read" in refusal(lambda: Plan.load(tmp_path / "plan.json"))


def test_a_plan_for_another_model() -> None:
    plan = Plan.uniform(program(), 2, "asc")
    other = sample("merged-heads", "cond-first").program
    message = refusal(lambda: plan.check(other))
    assert message.startswith(
        "plan is for tests.models.PlainDenoiser, the program is another configuration of it: find"
    )
    assert "the program is tests.models.SingleModule" in refusal(
        lambda: plan.check(sample("single-module", "cond-first").program)
    )
    plan.check(other, ignore_model=True)


def test_a_plan_that_a_script_saved(tmp_path: Path) -> None:
    """The script's own class lies in `__main__` for the script, in its module for others."""
    plan = Plan.uniform(program(), 2, "asc")
    script = replace(plan, identity=replace(plan.identity, model="__main__.PlainDenoiser"))
    script.check(program())
    plan.check(replace(program(), identity=script.identity))
    named = replace(plan.identity, model="__main__.Denoiser")
    assert "plan is for __main__.Denoiser, the program is tests.models.PlainD" in refusal(
        lambda: replace(plan, identity=named).check(program())
    )
    other = sample("merged-heads", "cond-first").program
    assert "is for __main__.PlainDenoiser, the program is another configuration of it" in refusal(
        lambda: script.check(other)
    )


def test_a_plan_for_another_resolution() -> None:
    plan = Plan.uniform(program(), 2, "asc")
    kwargs = models.plain_kwargs(tokens=16)
    other = capture(models.fused_qkv(), kwargs, cfg="cond-first")
    assert refusal(lambda: plan.check(other)) == (
        "plan is for latents [25, 16], the program has [16, 16]: find a plan at this resolution"
    )


def test_a_plan_holds_for_another_batch() -> None:
    plan = Plan.uniform(program(), 2, "asc")
    plan.check(capture(models.fused_qkv(), models.plain_kwargs(batch=2), cfg="cond-first"))


def test_a_plan_for_another_layout() -> None:
    plan = Plan.uniform(program(), 2, "ast")
    message = refusal(lambda: plan.check(program("uncond-first")))
    assert message.startswith("plan is for CFG layout cond-first, the program has uncond-first:")


@pytest.mark.parametrize("method", ["asc", "wa-rs+asc"])
def test_sharing_without_halves(method: str) -> None:
    message = refusal(lambda: Plan.uniform(program(None), 2, method))
    assert message.startswith(f"step 1, site attentions.0: {method} without CFG halves: capture")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("wa-rs", "wa-rs before any full step, so there is no residual: step 0 is full"),
        ("wa-rs+asc", "wa-rs+asc before any full step"),
        ("asc", "asc, but step 0 is never compressed: make it full"),
        ("ast", "ast, but step 0 is never compressed: make it full"),
    ],
)
def test_step_0_is_never_compressed(method: str, reason: str) -> None:
    plan = Plan.uniform(program(), 2, "full").replace(0, SITE, method)
    assert refusal(lambda: plan.check(program())).startswith(f"step 0, site {SITE}: {reason}")


def test_a_site_that_is_not_there() -> None:
    plan = Plan.uniform(program(), 2, "full")
    windows, cells = {"attentions.9": Window(1)}, ({"attentions.9": Method.FULL},) * 2
    moved = replace(plan, windows=windows, cells=cells)
    assert refusal(lambda: moved.check(program())) == (
        "unknown site attentions.9: the program has attentions.0, attentions.1"
    )


def test_a_site_that_is_not_eligible() -> None:
    pixart = sample("pixart", "cond-first").program
    plan = Plan.uniform(pixart, 2, "full")
    name = "transformer_blocks.0.attn2"
    cells = ({name: Method.FULL}, {name: Method.AST})
    crossed = replace(plan, windows={name: Window(3)}, cells=cells)
    assert refusal(lambda: crossed.check(pixart)) == (
        f"step 1, site {name}: ast on a site that isn't eligible (cross-attention is left alone)"
    )


def test_a_window_wider_than_the_sequence() -> None:
    assert "window of 25 tokens a side is wider than the sequence of 25: use full" in refusal(
        lambda: Plan.uniform(program(), 2, "wa-rs", window=Window(25))
    )
    assert Plan.uniform(program(), 2, "wa-rs", window=Window(24)).windows[SITE].density(25) == 1.0


@pytest.mark.parametrize(
    ("step", "site", "method", "reason"),
    [
        (3, SITE, "ast", "step 3: the plan has steps 0 to 2"),
        (-1, SITE, "ast", "step -1: the plan has steps 0 to 2"),
        (1, "x", "ast", "site x: the plan has attentions.0, attentions.1"),
        (1, SITE, "all", f"step 1, site {SITE}: unknown method 'all', expected one of full"),
    ],
)
def test_replacements_that_fail(step: int, site: str, method: str, reason: str) -> None:
    plan = Plan.uniform(program(), 3, "full")
    assert refusal(lambda: plan.replace(step, site, method)).startswith(reason)


@pytest.mark.parametrize("steps", [0, -1, 1_000_000])
def test_uniform_plans_of_no_or_too_many_steps(steps: int) -> None:
    message = refusal(lambda: Plan.uniform(program(), steps, "full"))
    assert message == f"plan of {steps} steps: expected 1 to 10000"


def test_uniform_with_an_unknown_method() -> None:
    assert refusal(lambda: Plan.uniform(program(), 2, "none")).startswith(
        "method of 2 steps: unknown method 'none', expected one of full, asc, wa-rs, wa-rs+asc, ast"
    )


def test_identity_tells_configurations_apart_but_not_weights() -> None:
    assert Identity.of(models.dit()) == Identity.of(models.dit(seed=1))
    assert Identity.of(models.dit()) != Identity.of(models.dit(layers=2))
    assert Identity.of(models.dit()).model.endswith(".DiTTransformer2DModel")
    assert Identity.of(models.fused_qkv()) != Identity.of(models.fused_qkv(layers=3))
    assert len(Identity.of(models.fused_qkv()).config_sha256) == 64


def test_methods_know_what_they_leave_out() -> None:
    assert [method.value for method in Method] == list(METHODS)
    assert [method.windowed for method in Method] == [False, False, True, True, False]
    assert [method.shares_cfg for method in Method] == [False, True, False, True, False]
    assert [method.runs_full_attention for method in Method] == [True, True, False, False, False]


def test_tile_windows_are_saved_and_read() -> None:
    tiled = {"grid": [5, 5], "tile": [2, 3], "reach": [1, 0]}
    text = Plan.uniform(program(), 3, "wa-rs").to_json()
    plan = parse_plan(json.dumps({**json.loads(text), "windows": dict.fromkeys(SITES, tiled)}), "p")
    assert plan.windows == dict.fromkeys(SITES, TileWindow((5, 5), (2, 3), (1, 0)))
    assert json.loads(plan.to_json())["windows"][SITE] == tiled
    assert parse_plan(plan.to_json(), "p") == plan
    assert refusal(lambda: plan.check(program())) == (
        "site attentions.0: its window is for tokens in tiles of 2×3 on a grid of 5×5, they lie "
        "in the model's own order"
    )
