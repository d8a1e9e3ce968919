"""No grouping keeps more than the bound says: against all groupings of few steps, and good ones."""

import random
from dataclasses import replace

import numpy as np
import pytest

from ditc.passes import Method, Plan
from ditc.passes.clustering import partitions
from ditc.passes.merging import Merging
from ditc.tools.bench_buckets import measured, persistence
from ditc.tools.merging_bound import MergingBound

from .samples import METHODS, mixed, sample


def kept(merging: Merging, groupings: np.ndarray) -> float:
    """Return the most that one of some groupings keeps of the unlimited saving."""
    unlimited = merging.full() - merging.cost(np.arange(merging.units)[None])[0]
    return float((merging.full() - merging.cost(groupings)).max() / unlimited)


def drawn(steps: int, seed: int, methods: tuple[str, ...] = METHODS) -> Plan:
    plan = mixed(sample("dit", "cond-first"), seed, steps=steps)
    draw = random.Random(seed)
    cells = [{site: Method(draw.choice(methods)) for site in plan.sites} for _ in range(steps)]
    return replace(plan, cells=(plan.cells[0], *cells[1:]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [3, 6, 7])
def test_no_grouping_of_few_steps_keeps_more(steps: int, seed: int) -> None:
    plan = drawn(steps, seed)
    merging, bound = Merging(plan), MergingBound(plan)
    before = 0.0
    for limit in range(1, merging.units + 1):
        every = np.array(list(partitions(merging.units, limit)))
        assert kept(merging, every) <= bound.kept(limit) + 1e-9
        assert before <= bound.kept(limit) + 1e-9
        before = bound.kept(limit)
    assert before == pytest.approx(1.0)


def wide(steps: int, seed: int, sites: int = 28) -> Plan:
    """Return a plan of a model of many like sites, every cell drawn alone."""
    plan = drawn(steps, seed)
    names, (window, *_), (cost, *_) = (
        [f"site{number}" for number in range(sites)],
        plan.windows.values(),
        plan.cost.sites.values(),
    )
    draw = random.Random(seed)
    cells = [{name: Method(draw.choice(METHODS)) for name in names} for _ in range(steps)]
    return replace(
        plan,
        windows=dict.fromkeys(names, window),
        cost=replace(plan.cost, sites=dict.fromkeys(names, cost)),
        cells=(dict.fromkeys(names, Method.FULL), *cells[1:]),
    )


def test_it_rules_out_what_independent_cells_cannot_keep() -> None:
    """Thirty steps at 28 sites: four buckets can't keep half, and for 90% most are needed."""
    plan = wide(30, 1)
    merging, bound = Merging(plan), MergingBound(plan)
    best = kept(merging, merging.group(4)[None])
    assert 0.05 <= best <= bound.kept(4) <= 0.6
    least = bound.least(0.9)
    assert least >= 15
    assert bound.kept(least) >= 0.9 > bound.kept(least - 1)


def test_steps_alike_are_not_ruled_out() -> None:
    plan = drawn(12, 0)
    cells = (plan.cells[0], *(plan.cells[1 + step // 6] for step in range(11)))
    plan = replace(plan, cells=cells)
    assert MergingBound(plan).kept(3) == pytest.approx(1.0)
    assert MergingBound(plan).least(0.999) <= 3


def test_a_plan_that_saves_nothing() -> None:
    plan = drawn(4, 0, ("full",))
    assert MergingBound(plan).kept(1) == 1.0


def test_persistence_by_hand() -> None:
    plan = drawn(4, 0, ("full",))
    assert persistence(plan) == (1.0, 1.0)
    plan = wide(4, 0, sites=2)
    for step, methods in enumerate((("full", "full"), ("ast", "full"), ("ast", "asc")), start=1):
        for site, method in zip(plan.sites, methods, strict=True):
            plan = plan.replace(step, site, method)
    # From 1 to 2 one of two sites keeps its method, from 2 to 3 one: full, ast, asc are 3, 2, 1.
    assert persistence(plan) == pytest.approx((0.5, (3**2 + 2**2 + 1) / 36))


def test_the_bench_of_a_plan() -> None:
    found = measured(wide(20, 2), limits=(1, 8, 50))
    assert list(found["kept"]) == ["1", "8"]
    assert found["kept"]["1"] == 0.0
    assert 0 < found["kept"]["8"] <= found["bound"]["8"] <= 1
    assert found["buckets"] == 20
