"""What a bundle ran, read back so that a plan that differs little builds little."""

from pathlib import Path

from ditc.passes import Plan
from ditc.passes.calls import Call, calls_of
from ditc.passes.equal_runs import Keep
from ditc.passes.nearing import Asked, Earlier, Group
from ditc.runtime.agreement import check_plan
from ditc.runtime.errors import BundleError, DitcError
from ditc.runtime.files import check_files
from ditc.runtime.manifest import PLAN_FILE, BucketInfo, Manifest
from ditc.runtime.variants import read_manifest, variants_of

__all__ = ["earlier_of", "replaced"]


def earlier_of(bundle: Path, variant: str | None) -> Earlier:
    """Return what a bundle ran.

    Args:
        bundle: its folder.
        variant: which one, of a bundle of several.

    Raises:
        DitcError: if it is no bundle, or tells nothing of what it was asked for.
    """
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: is no folder, expected a bundle")
    manifest = read_manifest(bundle, variant if variant in variants_of(bundle) else None)
    name = manifest.file(PLAN_FILE)
    if name not in manifest.files:
        raise BundleError(f"{bundle}: holds no {name}, expected the plan that it runs")
    check_files(bundle, {name: manifest.files[name]})
    check_plan(bundle, manifest)
    plan = Plan.load(bundle / name)
    if set(plan.sites) != set(manifest.buckets[0].methods):
        raise BundleError(f"{bundle}: {name} speaks of other sites than its graphs; compile again")
    if manifest.asked is None:
        raise BundleError(
            f"{bundle}: doesn't tell what it was asked for, as its steps weren't merged or slots "
            "were given up: leave it aside"
        )
    calls = calls_of(plan.cfg)
    owner = {(run.step, run.call): run.bucket for run in manifest.runs}
    named = {bucket.name: bucket for bucket in manifest.buckets}
    steps: dict[tuple[str, ...], list[int]] = {}
    for step in range(plan.steps):
        steps.setdefault(tuple(owner[step, call] for call in calls), []).append(step)
    groups = tuple(
        Group(tuple(numbers), plan.cells[numbers[0]], _kept(manifest, calls, names, named))
        for names, numbers in steps.items()
    )
    return Earlier(Asked(manifest.asked.key, manifest.asked.steps), groups)


def _kept(
    manifest: Manifest,
    calls: tuple[Call, ...],
    names: tuple[str, ...],
    named: dict[str, BucketInfo],
) -> dict[Call, Keep]:
    """Return what the graphs of a group's calls write."""
    slots = {slot.name.partition("@")[0]: slot for slot in manifest.slots}
    found: dict[Call, Keep] = {}
    for call, name in zip(calls, names, strict=True):
        written = [slots[slot] for slot in named[name].writes]
        sites = {
            kind: frozenset(slot.site for slot in written if slot.kind == kind)
            for kind in ("output", "residual")
        }
        found[call] = Keep(sites["output"], sites["residual"])
    return found


def replaced(place: Path, variant: str | None) -> Earlier | None:
    """Return what the bundle ran that a new one takes the place of, None where there is none."""
    try:
        return earlier_of(place, variant)
    except DitcError:
        return None
