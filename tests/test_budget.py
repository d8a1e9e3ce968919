"""Budgets: the least threshold that meets one, and budgets that can't be met."""

from dataclasses import replace

import pytest

from ditc.passes import Goal, Method, Plan
from ditc.runtime.errors import PlanError
from ditc.tools.budget import least_threshold, limit_of
from ditc.tools.space import space_of

from .samples import sample
from .test_latencies import made


@pytest.mark.parametrize("search", ["greedy", "local", "ilp"])
@pytest.mark.parametrize("needed", [1.8e-6, 3e-5, 0.02, 0.1, 0.11, 1.7, 5.9])
def test_finds_the_least_threshold_to_within_a_tenth(search: str, needed: float) -> None:
    tried: list[float] = []

    def meets(threshold: float) -> bool:
        tried.append(threshold)
        return threshold >= needed

    found = least_threshold(search, 3, meets)
    assert needed <= found <= needed * 1.11
    assert found == min(threshold for threshold in tried if threshold >= needed)
    assert len(tried) == len(set(tried)) <= 16


def test_errors_at_a_site_are_squared_and_may_be_large() -> None:
    for search in ("local", "ilp"):
        assert 4e4 <= least_threshold(search, 3, lambda threshold: threshold >= 4e4) <= 4.5e4
    with pytest.raises(PlanError, match=r"no threshold up to 6\.06 meets"):
        least_threshold("greedy", 3, lambda threshold: threshold >= 40)


def test_a_budget_that_any_threshold_meets() -> None:
    assert least_threshold("local", 3, lambda _: True) < 1e-5


def test_a_budget_that_none_meets() -> None:
    with pytest.raises(PlanError, match="no threshold up to"):
        least_threshold("local", 3, lambda _: False)


def test_a_budget_that_lower_thresholds_alone_meet() -> None:
    """Windows allowed from 0.05 on have residuals that cost more than they save."""
    tried: list[float] = []

    def meets(threshold: float) -> bool:
        tried.append(threshold)
        return 0.01 <= threshold < 0.05

    assert 0.01 <= least_threshold("greedy", 3, meets) <= 0.011
    assert len(tried) == len(set(tried))


def test_residuals_that_take_long_put_nothing_out_of_reach() -> None:
    program = sample("dit", "cond-first").program
    full = Plan.uniform(program, 3, Method.FULL)
    latencies = made(program, **{"ast": 12.0, "wa-rs": 8.0, "asc": 8.4, "wa-rs+asc": 12.0})
    dear = {
        name: replace(found, keeping_ms={Method.FULL: 18.0})
        for name, found in latencies.sites.items()
    }
    space = space_of(program, latencies=replace(latencies, sites=dear))
    assert space.predicted(Plan.uniform(program, 3, Method.WA_RS)) > 300
    assert space.predicted(Plan.uniform(program, 3, Method.ASC)) < 291
    assert limit_of(space, full, Goal(budget_ms=291.0)) == 291
    with pytest.raises(PlanError, match=r"the best is 288\.0 ms"):
        limit_of(space, full, Goal(budget_ms=287.0))


def test_what_a_generation_may_take() -> None:
    program = sample("dit", "cond-first").program
    space = space_of(program, latencies=made(program))
    full = Plan.uniform(program, 4, Method.FULL)

    def limit(speedup: float | None = None, budget_ms: float | None = None) -> float:
        return limit_of(space, full, Goal(speedup, budget_ms))

    assert limit(speedup=1.25) == 400 / 1.25
    assert limit(budget_ms=350.0) == 350.0
    # at best three steps save 9 ms at each of three sites
    with pytest.raises(PlanError, match=r"speedup of 1\.3 is out of reach: the best is 1\.253, w"):
        limit(speedup=1.3)
    assert limit(speedup=1.253) > 319
    with pytest.raises(PlanError, match=r"budget of 318 ms is out of reach: the best is 319\.0 ms"):
        limit(budget_ms=318.0)
    assert limit(budget_ms=319.0) == 319
    with pytest.raises(PlanError, match="budget of 400 ms needs no plan: uncompressed it is 400"):
        limit(budget_ms=400.0)
    with pytest.raises(PlanError, match="speedup of 1 needs no plan"):
        limit(speedup=1.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError, match="expected a positive number"):
            limit(speedup=wrong)


def test_the_speedup_that_is_offered_is_within_reach() -> None:
    """Seven steps, of which six take nothing: 7 / (1 / 7) and the like round to either side."""
    program = sample("dit", "cond-first").program
    full = Plan.uniform(program, 7, Method.FULL)
    for step_ms in (0.1, 0.7, 1.1, 2.03, 19.9):
        latencies = replace(made(program), step_ms=step_ms)
        space = space_of(program, latencies=latencies)
        limit = limit_of(space, full, Goal(speedup=7.0))
        assert limit == pytest.approx(step_ms, rel=1e-12)
        assert latencies.predicted_ms(Plan.uniform(program, 7, "ast")) <= limit


def test_the_best_minds_what_was_refused() -> None:
    program = sample("dit", "cond-first").program
    full = Plan.uniform(program, 4, Method.FULL)
    space = space_of(program, latencies=made(program, ast=12.0))
    with pytest.raises(PlanError, match=r"best is 1\.\d+, with .* and 3 methods refused as not"):
        limit_of(space, full, Goal(speedup=2.0))


def test_the_best_is_of_the_fastest_method() -> None:
    """Sharing alone is faster here than in a window too, unlike what the paper's order says."""
    program = sample("dit", "cond-first").program
    full = Plan.uniform(program, 4, Method.FULL)
    space = space_of(program, latencies=made(program, **{"wa-rs+asc": 9.0, "asc": 5.0, "ast": 12}))
    assert limit_of(space, full, Goal(budget_ms=360.0)) == 360
    with pytest.raises(PlanError, match=r"the best is 355\.0 ms"):  # 3 steps less 5 ms at 3 sites
        limit_of(space, full, Goal(budget_ms=354.0))


def test_without_latencies_a_speedup_is_one_of_multiply_adds() -> None:
    program = sample("dit", "cond-first").program
    space = space_of(program)
    full = Plan.uniform(program, 4, Method.FULL)
    assert limit_of(space, full, Goal(speedup=1.1)) == 1 / 1.1
    best = space.cost.full * 4 / (space.cost.full + 3 * space.cost.rest)
    with pytest.raises(PlanError, match=r"the best is [\d.]+, with every error allowed$") as caught:
        limit_of(space, full, Goal(speedup=100.0))
    told = float(str(caught.value).partition("the best is ")[2].partition(",")[0])
    assert best - 1e-3 < told <= best
