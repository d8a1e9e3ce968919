"""`ditc diff` and `ditc inspect --why`: how plans differ, and why a cell is what it is."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ditc.passes import Method, Plan
from ditc.runtime.errors import PlanError

from .thresholds import threshold_of

__all__ = ["diff", "explain"]


def diff(first: Path, second: Path, *, as_json: bool = False) -> None:
    """Print how two plans differ, cell by cell and in the multiply-adds they leave.

    Raises:
        PlanError: if one can't be read, or they have other steps or sites.
    """
    before, after = Plan.load(first), Plan.load(second)
    if before.steps != after.steps:
        raise PlanError(f"{first} has {before.steps} steps, {second} has {after.steps}")
    if set(before.sites) != set(after.sites):
        other = sorted(set(before.sites) ^ set(after.sites))
        raise PlanError(f"{first} and {second} speak of other sites: {other[0]} is in one only")
    changes = [
        {"step": step, "site": site, "from": str(old), "to": str(new)}
        for step in range(before.steps)
        for site in before.sites
        if (old := before.method(step, site)) != (new := after.method(step, site))
    ]
    shares = [_left(plan) for plan in (before, after)]
    if as_json:
        sys.stdout.write(json.dumps({"cells": changes, "multiply_adds_left": shares}) + "\n")
        return
    for change in changes:
        sys.stdout.write("step {step:>4}  {site}: {from} -> {to}\n".format(**change))
    total = before.steps * len(before.sites)
    sys.stdout.write(
        f"{len(changes)} of {total} cells differ; {shares[0]:.1%} of the model's multiply-adds "
        f"left become {shares[1]:.1%} ({shares[1] / shares[0] - 1:+.1%})\n"
    )


def _left(plan: Plan) -> float:
    """Return the share of a generation's multiply-adds that a plan leaves, residuals aside.

    A share, as plans may have been made with batches of different sizes.
    """
    computed = plan.cost.rest * plan.steps + plan.site_multiply_adds()
    return computed / (plan.cost.full * plan.steps)


def explain(path: Path, step: int, site: str, *, as_json: bool = False) -> None:
    """Print why a cell of a plan has its method.

    Raises:
        PlanError: if the plan has no such cell.
    """
    plan = Plan.load(path)
    if not 0 <= step < plan.steps:
        raise PlanError(f"step {step}: the plan has steps 0 to {plan.steps - 1}")
    if site not in plan.windows:
        raise PlanError(f"site {site}: the plan has {', '.join(plan.sites)}")
    if as_json:
        sys.stdout.write(json.dumps(_record(plan, step, site)) + "\n")
        return
    sys.stdout.write("\n".join(_reasons(plan, step, site)) + "\n")


def _record(plan: Plan, step: int, site: str) -> dict[str, object]:
    """Return a cell for programs: null where the plan doesn't tell."""
    method, cost = plan.method(step, site), plan.cost.sites[site]
    tried = None if plan.losses is None else plan.losses[step].get(site, {})
    return {
        "step": step,
        "site": site,
        "method": method,
        "multiply_adds_left": cost.of(method, plan.windows[site]) / cost.full,
        "search": plan.origin and plan.origin.search,
        "threshold": _limit(plan, site),
        "losses": tried,
    }


def _limit(plan: Plan, site: str) -> float | None:
    """Return the loss allowed at a site, None where no search found the plan."""
    if plan.origin is None:
        return None
    return threshold_of(plan.origin.threshold, plan.sites.index(site), len(plan.sites))


def _reasons(plan: Plan, step: int, site: str) -> Iterator[str]:
    method, window = plan.method(step, site), plan.windows[site]
    cost = plan.cost.sites[site]
    yield f"step {step}, {site}: {method}"
    yield f"multiply-adds {cost.of(method, window) / cost.full:.1%} of full"
    if step == 0:
        yield "step 0 is never compressed"
        return
    if plan.origin is None or plan.losses is None:
        yield "the plan was written, not found: no losses are known"
        return
    yield (
        f"{plan.origin.search} search, threshold {plan.origin.threshold:g} x "
        f"{plan.sites.index(site) + 1} of {len(plan.sites)} sites = {_limit(plan, site):.4g}"
    )
    for candidate, loss in plan.losses[step].get(site, {}).items():
        verdict = "under it, taken" if candidate is method else "not under it"
        share = cost.of(candidate, window) / cost.full
        yield f"  {candidate:<10} loss {loss:.4g}, {share:.1%} of full: {verdict}"
    if method is Method.FULL:
        yield "  full       no candidate was good enough"
