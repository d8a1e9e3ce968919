"""Searches by a 0/1 program, against all assignments tried one by one."""

import itertools
import random

import pytest
import torch

from ditc.passes import Method
from ditc.runtime.errors import PlanError
from ditc.tools.decisions import spread_of, squared_error
from ditc.tools.ilp_steps import Choice, choose
from ditc.tools.search import find
from ditc.tools.space import space_of

from .plain_search import ORDER, SCALE, STEPS, Cells, PlainRun, as_text, flow, searched
from .samples import Sample, sample


def rse(reference: torch.Tensor, output: torch.Tensor) -> float:
    mean = reference.mean()
    return float(((output - reference) ** 2).sum() / ((reference - mean) ** 2).sum())


def best(options: dict[str, dict[str, tuple[float, float]]], delta: float) -> dict[str, str]:
    """Try every assignment; options: (saved, error) by site and method."""
    limit = 1.5 * delta / len(options)
    allowed = [
        [("full", 0.0, 0.0)] + [(m, s, e) for m, (s, e) in tried.items() if e < limit and s > 0]
        for tried in options.values()
    ]
    fit = [row for row in itertools.product(*allowed) if sum(e for *_, e in row) <= delta]
    most = max(sum(saved for _, saved, _ in row) for row in fit)
    as_much = [row for row in fit if sum(saved for _, saved, _ in row) >= most * (1 - 1e-9)]
    chosen = min(as_much, key=lambda row: sum(error for *_, error in row))
    return {site: method for site, (method, *_) in zip(options, chosen, strict=True)}


@pytest.mark.parametrize("seed", range(40))
def test_chooses_what_brute_force_does(seed: int) -> None:
    draw = random.Random(seed)
    equal = seed % 2 == 0  # sites of one shape save the same: then errors decide
    costs = {method: draw.uniform(-0.2, 1) for method in ORDER}
    options = {
        site: {
            method: (costs[method] if equal else draw.uniform(-0.2, 1), draw.uniform(0, 0.3))
            for method in ORDER
        }
        for site in "abc"
    }
    delta = draw.uniform(0.1, 0.8)
    choices = [
        Choice(site, Method(method), *values)
        for site, tried in options.items()
        for method, values in tried.items()
    ]
    found = choose(choices, delta, 3)
    expected = best(options, delta)
    assert {site: str(found.get(site, "full")) for site in "abc"} == expected


def test_the_budget_holds_exactly() -> None:
    """Sixteen sites, errors that fill the budget to the last digit."""
    choices = [Choice(f"s{n}", Method.AST, 1.0, 0.1 / 16 * (1 + n * 1e-7)) for n in range(16)]
    found = choose(choices, 0.1, 16)
    assert sum(choice.error for choice in choices if choice.site in found) <= 0.1
    assert len(found) == 15


def test_nothing_to_choose() -> None:
    assert choose([], 0.1, 3) == {}
    assert choose([Choice("a", Method.AST, 1.0, 0.051)], 0.1, 3) == {}  # 1.5·δ/M: ruled out
    assert choose([Choice("a", Method.AST, 0.0, 0.0)], 0.1, 3) == {}


def test_error_is_relative_to_the_spread() -> None:
    reference, flat = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
    assert spread_of(reference) == pytest.approx(2.0)
    assert squared_error(reference, torch.tensor([1.0, 2.0, 4.0]), 2.0) == pytest.approx(0.5)
    assert squared_error(reference, reference, 2.0) == 0.0
    assert squared_error(flat, flat, spread_of(flat)) == 0.0
    assert squared_error(flat, reference, spread_of(flat)) == 1e6


def test_savings_that_differ_by_more_than_the_solver_can_tell() -> None:
    big, small = Choice("big", Method.AST, 1e9, 0.01), Choice("small", Method.AST, 500.0, 0.01)
    assert choose([big, small], 1.0, 2) == {"big": Method.AST, "small": Method.AST}
    uneven = [
        Choice("first", Method.AST, 932389588.0, 0.0003956283867235716),
        Choice("first", Method.WA_RS_ASC, 792637994.0, 0.0036310665344781515),
        Choice("first", Method.ASC, 734013958.0, 0.0004899367992195042),
        Choice("second", Method.AST, 436.0, 1.7913658338655427e-08),
    ]
    assert choose(uneven, 0.01, 4) == {"first": Method.AST, "second": Method.AST}


def plain_ilp(model: Sample, delta: float, seed: int) -> Cells:
    costs = space_of(model.program).cost.sites

    def decide(run: PlainRun, step: int) -> None:
        options: dict[str, dict[str, tuple[float, float]]] = {}
        for site in run.windows:
            reference, options[site] = run.site_output(step, site), {}
            cost = costs[site]
            radius, _ = run.windows[site]
            pairs = sum(
                abs(i - j) <= radius for i in range(cost.tokens) for j in range(cost.tokens)
            )
            window = cost.projections + cost.attention * pairs // cost.tokens**2
            left = {
                "ast": 0,
                "wa-rs+asc": window // 2,
                "wa-rs": window,
                "asc": (cost.projections + cost.attention) // 2,
            }
            for method in ORDER:
                run.cells[step][site] = method
                error = rse(reference, run.site_output(step, site))
                options[site][method] = (cost.projections + cost.attention - left[method], error)
            run.cells[step][site] = "full"
        run.cells[step].update(best(options, delta))

    return searched(model, seed, decide)


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
def test_decides_as_the_definition_does(cfg: str) -> None:
    model = sample("dit", cfg)
    space, used = space_of(model.program), set()
    for delta in (0.3, 1.0, 3.0):
        found = find("ilp", space, flow(), delta, guidance_scale=SCALE, seed=3)
        assert as_text(found.plan) == plain_ilp(model, delta, seed=3)
        used |= {method for row in found.plan.cells for method in row.values()}
        assert found.multiply_adds <= 3 * space.cost.full * STEPS
    assert len(used) >= 3, used


def test_an_unknown_search() -> None:
    space = space_of(sample("dit", "cond-first").program)
    with pytest.raises(PlanError, match="search 'best' is not known: expected greedy, local, ilp"):
        find("best", space, flow(), 0.1)
