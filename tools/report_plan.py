"""What a plan tells a report beside its methods: costs of its cells, and what its search tried."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ditc.passes import Method, Plan

from .counted import counted
from .report_points import Point
from .thresholds import limits_of

__all__ = [
    "Absent",
    "Costs",
    "Searched",
    "costs_of",
    "notes_of",
    "points_of",
    "scaled",
    "searched_of",
    "titled",
]

FIT = 1e-3
"""How far, as a share, a plan's multiply-adds may lie from a bundle's: rounding of halves."""


@dataclass(frozen=True)
class Absent:
    """Something a report could show and doesn't: what, why, and the way to get it."""

    what: str
    why: str


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one step, for all of the batch.

    Attributes:
        rest: of all but the sites.
        full: of each site as trained.
        spent: for each step, of each site under its method.
        spared: of `rest`, what a bundle's graph computes less of at each step: what its prologue
            does in the place of the steps, and what nobody needs where a site's inputs aren't
            needed. None of it if empty.
    """

    rest: int
    full: tuple[int, ...]
    spent: tuple[tuple[int, ...], ...]
    spared: tuple[int, ...] = ()

    @property
    def whole(self) -> int:
        """Multiply-adds of an uncompressed step."""
        return self.rest + sum(self.full)

    @property
    def rests(self) -> tuple[int, ...]:
        """What all but the sites take at each step."""
        spared = self.spared or (0,) * len(self.spent)
        return tuple(self.rest - less for less in spared)

    @property
    def attention_left(self) -> float:
        """Share of the sites' multiply-adds that is left over all steps."""
        full = sum(self.full) * len(self.spent)
        return sum(map(sum, self.spent)) / full if full else 1.0

    @property
    def model_left(self) -> float:
        """Share of the whole model's multiply-adds that is left over all steps."""
        steps = len(self.spent)
        left = self.rest * steps + sum(map(sum, self.spent))
        return left / (self.whole * steps) if self.whole else 1.0


@dataclass(frozen=True)
class Searched:
    """What the search that found a plan tried.

    Attributes:
        losses: for each step and site, method and loss in the order they were tried.
        thresholds: loss allowed at each site, None where the search isn't known to have any.
        threshold: δ.
        target: what latencies were measured on that ruled methods out, None without.
        gated: methods that they ruled out, by site.
    """

    losses: tuple[tuple[tuple[tuple[str, float], ...], ...], ...]
    thresholds: tuple[float, ...] | None
    threshold: float | None
    target: str | None = None
    gated: tuple[tuple[str, ...], ...] = ()


def costs_of(plan: Plan, rows: Sequence[Sequence[str]], kept: Sequence[frozenset[str]]) -> Costs:
    """Return what a plan's cells cost.

    Args:
        plan: that states what its sites cost.
        rows: for each step the method of each site; those of the plan, or of a bundle made of it.
        kept: for each step the sites that keep their residual.
    """
    spent = tuple(
        tuple(
            plan.cost.sites[site].of(
                Method(method), plan.windows[site], keeps_residual=site in residuals
            )
            for site, method in zip(plan.sites, row, strict=True)
        )
        for row, residuals in zip(rows, kept, strict=True)
    )
    full = tuple(plan.cost.sites[site].full for site in plan.sites)
    return Costs(plan.cost.rest, full, spent)


def scaled(
    costs: Costs, totals: Sequence[int], ratio: float | None = None
) -> tuple[Costs | None, tuple[Absent, ...]]:
    """Scale a plan's costs to a bundle's batch, which may be another, if they fit at every step.

    Args:
        costs: of the plan's cells, for the batch it was made with.
        totals: multiply-adds of each step's graphs.
        ratio: the bundle's batch over that; None where it isn't known, and is taken from steps
            that differ. What a step costs beside its sites has to be the same in all of them then.
    """
    sites = [sum(row) for row in costs.spent]
    near, known = FIT * max(totals), ratio is not None
    if ratio is None:
        ratio = _ratio(costs, sites, totals)
    rests = [total - ratio * own for total, own in zip(totals, sites, strict=True)]
    same = known or max(rests) - min(rests) <= near
    if ratio <= 0 or not same or min(rests) < -near or max(rests) > ratio * costs.rest + near:
        why = "the multiply-adds that the plan states don't fit those of the bundle's graphs"
        return None, (Absent("Attention and model left, costs of cells", why),)
    spared = tuple(max(round(costs.rest * ratio - max(rest, 0.0)), 0) for rest in rests)
    scaled = Costs(
        round(costs.rest * ratio),
        tuple(round(cost * ratio) for cost in costs.full),
        tuple(tuple(round(cost * ratio) for cost in row) for row in costs.spent),
        spared if any(spared) else (),
    )
    return scaled, ()


def _ratio(costs: Costs, sites: Sequence[int], totals: Sequence[int]) -> float:
    """Return a bundle's batch over a plan's, by the two steps that differ most."""
    low, high = (sites.index(pick(sites)) for pick in (min, max))
    if sites[low] != sites[high]:
        return (totals[high] - totals[low]) / (sites[high] - sites[low])
    return totals[0] / (costs.rest + sites[0]) if costs.rest + sites[0] else 0.0


def searched_of(plan: Plan) -> tuple[Searched | None, tuple[Absent, ...]]:
    """Return what the search of a plan tried, and what the plan doesn't tell of it."""
    if plan.losses is None:
        why = "the plan holds none: it was written or changed by hand, not found by a search"
        return None, (Absent("Losses of candidates", why),)
    losses = tuple(
        tuple(
            tuple((str(method), loss) for method, loss in row.get(site, {}).items())
            for site in plan.sites
        )
        for row in plan.losses
    )
    limits = None if plan.origin is None else limits_of(plan.origin, len(plan.sites))
    if plan.origin is None or limits is None:
        why = "the plan doesn't say that a search of ditc found it"
        return Searched(losses, None, None), (Absent("Thresholds of sites", why),)
    delta = plan.origin.threshold
    gate = plan.origin.gate
    if gate is None:
        return Searched(losses, limits, delta), ()
    gated = tuple(tuple(map(str, gate.refused.get(site, ()))) for site in plan.sites)
    return Searched(losses, limits, delta, gate.target, gated), ()


def notes_of(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return how a plan was found, as labels and values."""
    scale = () if plan.guidance_scale is None else (("guidance", f"{plan.guidance_scale:g}"),)
    if plan.origin is None:
        return (*scale, ("found by", "no search"))
    origin = plan.origin
    samples = counted(origin.samples, "sample")
    delta = f"δ = {origin.threshold:g}" + (f", the least for {origin.goal}" if origin.goal else "")
    found = f"{titled(origin.search)}, {delta}, {samples}, seed {origin.seed}"
    return (*scale, ("found by", found), *_gate_notes(plan))


def titled(search: str) -> str:
    """Return how a search is called; `weights` adds behind a name that others were found on."""
    name, _, elsewhere = search.partition(", ")
    return f"{name} search {elsewhere}".rstrip()


def _gate_notes(plan: Plan) -> tuple[tuple[str, str], ...]:
    gate = plan.origin.gate if plan.origin else None
    if gate is None:
        return ()
    if not gate.refused:
        return (("refused as not faster", f"nothing, on {gate.target}"),)
    counts = Counter(str(method) for methods in gate.refused.values() for method in methods)
    total = len(plan.sites)
    words = ", ".join(f"{name} at {count} of {total} sites" for name, count in counts.items())
    return (("refused as not faster", f"{words}, on {gate.target}"),)


def points_of(plan: Plan) -> tuple[Point, ...] | None:
    """Return what a search for a budget tried, as points of cost and loss; None without one."""
    if plan.pareto is None:
        return None
    return tuple(
        Point(
            cost=tried.multiply_adds_left if tried.latency_ms is None else tried.latency_ms,
            measured=tried.latency_ms is not None,
            loss=tried.loss,
            threshold=tried.threshold,
            label=f"δ {tried.threshold:g}",
        )
        for tried in plan.pareto
    )
