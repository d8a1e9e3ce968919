"""`ditc diff` and `ditc inspect --why`: how plans differ, and why a cell is what it is."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ditc.passes import Method, Origin, Plan
from ditc.passes.liveness import kept_residuals
from ditc.runtime.errors import BundleError, PlanError
from ditc.runtime.files import PLAN_FILE, check_files
from ditc.runtime.variants import read_manifest, variants_of

from .inspecting import check_is_bundle
from .report_plan import titled
from .thresholds import limits_of

__all__ = ["diff", "explain"]


def diff(first: Path, second: Path, *, as_json: bool = False) -> None:
    """Print how two plans differ: cell by cell, in windows, and in the multiply-adds they leave.

    Args:
        first: plan file, or a bundle's folder for the plan in it.
        second: the same.
        as_json: for programs to read.

    Raises:
        BundleError: if a folder holds no bundle, or several variants.
        PlanError: if a plan can't be read, or they have other steps or sites.
    """
    before, after = _loaded(first), _loaded(second)
    if before.steps != after.steps:
        raise PlanError(f"{first} has {before.steps} steps, {second} has {after.steps}")
    if set(before.sites) != set(after.sites):
        other = sorted(set(before.sites) ^ set(after.sites))
        raise PlanError(f"{first} and {second} speak of other sites: {other[0]} is in one only")
    cells, windows = _changed_cells(before, after), _changed_windows(before, after)
    shares = [plan.multiply_adds_left() for plan in (before, after)]
    if as_json:
        record = {"cells": cells, "windows": windows, "multiply_adds_left": shares}
        sys.stdout.write(json.dumps(record) + "\n")
        return
    for change in cells:
        sys.stdout.write("step {step:>4}  {site}: {from} -> {to}\n".format(**change))
    for moved in windows:
        old, new = (json.dumps(moved[side]) for side in ("from", "to"))
        sys.stdout.write(f"window     {moved['site']}: {old} -> {new}\n")
    total = before.steps * len(before.sites)
    if not cells and not windows and shares[0] == shares[1]:
        sys.stdout.write(f"0 of {total} cells differ, nor does what they cost\n")
        return
    rise = shares[1] / shares[0] - 1  # step 0 is full, so that every plan leaves something
    sys.stdout.write(
        f"{len(cells)} of {total} cells differ; {shares[0]:.1%} of the model's multiply-adds "
        f"left become {shares[1]:.1%} ({rise:+.1%})\n"
    )


def _changed_cells(before: Plan, after: Plan) -> list[dict[str, object]]:
    return [
        {"step": step, "site": site, "from": str(old), "to": str(new)}
        for step in range(before.steps)
        for site in before.sites
        if (old := before.method(step, site)) != (new := after.method(step, site))
    ]


def _changed_windows(before: Plan, after: Plan) -> list[dict[str, object]]:
    return [
        {"site": site, "from": old.to_json(), "to": new.to_json()}
        for site, old in before.windows.items()
        if old != (new := after.windows[site])
    ]


def _loaded(path: Path, variant: str | None = None) -> Plan:
    if not path.is_dir():
        check_is_bundle(path, variant)
        return Plan.load(path)
    variants = () if variant else variants_of(path)
    if variants:
        plans = " or ".join(f"{name}.{PLAN_FILE}" for name in variants)
        raise BundleError(f"{path}: holds several variants: give the plan of one, {plans} in it")
    manifest = read_manifest(path, variant)
    name = manifest.file(PLAN_FILE)
    if name not in manifest.files:
        raise BundleError(f"{path}: has no {name}: compile the bundle again")
    check_files(path, {name: manifest.files[name]})
    return Plan.load(path / name)


def explain(
    path: Path, step: int, site: str, *, variant: str | None = None, as_json: bool = False
) -> None:
    """Print why a cell of a plan has its method.

    Args:
        path: plan file, or a bundle's folder for the plan in it.
        step: of the cell.
        site: of the cell.
        variant: of a folder that holds several.
        as_json: for programs to read.

    Raises:
        BundleError: if a folder holds no bundle, or several variants and none is named.
        PlanError: if the plan can't be read, or has no such cell.
    """
    plan = _loaded(path, variant)
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
    tried = None if plan.losses is None else plan.losses[step].get(site, {})
    gate = None if plan.origin is None else plan.origin.gate
    return {
        "step": step,
        "site": site,
        "method": plan.method(step, site),
        "multiply_adds_left": _share(plan, step, site),
        "search": plan.origin and plan.origin.search,
        "threshold": _limit(plan, site),
        "losses": tried,
        "gated": () if gate is None else gate.refused.get(site, ()),
    }


def _share(plan: Plan, step: int, site: str) -> float:
    """Return a cell's share of the site's multiply-adds, with the residual that it keeps."""
    keeps, cost = site in kept_residuals(plan, step), plan.cost.sites[site]
    left = cost.of(plan.method(step, site), plan.windows[site], keeps_residual=keeps)
    return left / cost.full


def _limit(plan: Plan, site: str) -> float | None:
    """Return the loss allowed at a site, None where no search of ditc found the plan."""
    limits = None if plan.origin is None else limits_of(plan.origin, len(plan.sites))
    return None if limits is None else limits[plan.sites.index(site)]


def _reasons(plan: Plan, step: int, site: str) -> Iterator[str]:
    method, window = plan.method(step, site), plan.windows[site]
    cost = plan.cost.sites[site]
    yield f"step {step}, {site}: {method}"
    keeps = ", its residual kept for later steps" if site in kept_residuals(plan, step) else ""
    yield f"multiply-adds {_share(plan, step, site):.1%} of full{keeps}"
    if step == 0:
        yield "step 0 is never compressed"
        return
    if plan.origin is None:
        yield "the plan was written, not found: no losses are known"
        return
    if plan.losses is None:
        yield f"{titled(plan.origin.search)}; the plan holds no losses of what it tried"
        return
    yield f"{titled(plan.origin.search)}, {_allowed(plan, plan.origin, site)}"
    for candidate, loss in plan.losses[step].get(site, {}).items():
        share = cost.of(candidate, window) / cost.full
        verdict = _verdict(plan, plan.origin, site, loss, taken=candidate is method)
        yield f"  {candidate:<10} loss {loss:.4g}, {share:.1%} of full: {verdict}"
    gate = plan.origin.gate
    for refused in gate.refused.get(site, ()) if gate else ():
        yield f"  {refused:<10} never tried: not faster than full here on {gate and gate.target}"
    if _is_spared(plan, step, site):
        yield "  wa-rs      not tried here: its residual takes longer to keep than it saves"
    if method is Method.FULL and plan.origin.algorithm != "ilp":
        yield "  full       no candidate was good enough"


def _is_spared(plan: Plan, step: int, site: str) -> bool:
    """Return whether no window was tried, as it would have been the first to read a residual."""
    assert plan.origin is not None
    assert plan.losses is not None
    all_tried = plan.method(step, site) is Method.FULL or plan.origin.algorithm == "ilp"
    gate = plan.origin.gate
    if gate is None or not all_tried or Method.WA_RS in gate.refused.get(site, ()):
        return False
    return Method.WA_RS not in plan.losses[step].get(site, {})


def _allowed(plan: Plan, origin: Origin, site: str) -> str:
    """Return what the search allowed at a site, in words."""
    number, count, limit = plan.sites.index(site), len(plan.sites), _limit(plan, site)
    if limit is None:
        return f"threshold {origin.threshold:g}; what it allows at a site isn't known"
    if origin.algorithm == "ilp":
        return (
            f"squared errors of a step up to {origin.threshold:g} over {count} sites; a method is "
            f"ruled out from 1.5 x {origin.threshold:g} / {count} = {limit:.4g} on"
        )
    where = ", at the site's own output" if origin.algorithm == "local" else ""
    return f"threshold {origin.threshold:g} x {number + 1} of {count} sites = {limit:.4g}{where}"


def _verdict(plan: Plan, origin: Origin, site: str, loss: float, *, taken: bool) -> str:
    """Return what became of a candidate."""
    limit = _limit(plan, site)
    if limit is None:
        return "taken" if taken else "not taken"
    if origin.algorithm == "ilp" and not taken:
        under = "not among what saves most within the step's budget"
        return under if loss < limit else "ruled out"
    return ("under it" if loss < limit else "not under it") + (", taken" if taken else "")
