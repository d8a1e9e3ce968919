"""Read what a report shows from a plan file or a bundle, without torch.

Everything is turned into plain tuples here, indexed by step and by site.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditc.passes import Plan
from ditc.passes.curve import Curve
from ditc.passes.liveness import kept_residuals
from ditc.passes.merging import Merging
from ditc.runtime.agreement import check_plan
from ditc.runtime.batches import resized
from ditc.runtime.errors import BundleError, DitcError
from ditc.runtime.files import check_files
from ditc.runtime.manifest import PLAN_FILE, Manifest
from ditc.runtime.variants import read_manifest

from .inspecting import bytes_by_part, check_is_bundle
from .report_colours import METHODS
from .report_plan import Absent, Costs, Searched, costs_of, notes_of, points_of, scaled, searched_of
from .report_points import Point

__all__ = ["Facts", "Memory", "read_facts"]

MAX_CELLS = 100_000


@dataclass(frozen=True)
class Memory:
    """A bundle's bytes on disk by part, and its slots."""

    bytes_by_part: Mapping[str, int]
    slots: int
    slot_bytes: int


@dataclass(frozen=True)
class Facts:
    """What is known of a plan or a bundle.

    Attributes:
        source: name of the file or folder.
        model: import path of the model's class.
        notes: label and value of what else the source states.
        sites: names, in the order of the plan; by name where there is none.
        methods: for each step the method of each site.
        totals: multiply-adds of each step.
        buckets: bucket of each step, None for a plan.
        memory: of a bundle, None for a plan.
        costs: None where the source doesn't tell.
        searched: None where the plan doesn't tell.
        absent: what can't be shown, and why.
        points: what a search for a budget tried, predicted; None where there was none.
        curve: what each limit on buckets costs; None where a bundle was made without one.
        samples: how many samples the multiply-adds are of, both halves of each; 0 where a bundle
            doesn't tell.
    """

    source: str
    model: str
    notes: tuple[tuple[str, str], ...]
    sites: tuple[str, ...]
    methods: tuple[tuple[str, ...], ...]
    totals: tuple[int, ...]
    buckets: tuple[str, ...] | None
    memory: Memory | None
    costs: Costs | None
    searched: Searched | None
    absent: tuple[Absent, ...]
    points: tuple[Point, ...] | None = None
    curve: Curve | None = None
    samples: int = 1

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.methods)

    def share(self, method: str) -> float:
        """Return the share of all cells that use a method."""
        return sum(row.count(method) for row in self.methods) / (self.steps * len(self.sites))


def read_facts(path: Path, variant: str | None = None) -> Facts:
    """Read a bundle folder or a plan file.

    Args:
        path: of either.
        variant: of a folder that holds several.

    Raises:
        DitcError: if the path holds neither, or what it holds is too large to be drawn.
    """
    if path.is_dir():
        return _of_bundle(path, variant)
    if path.is_file():
        check_is_bundle(path, variant)
        return _of_plan(path)
    raise DitcError(f"{path}: no bundle folder and no plan file is there")


def _of_plan(path: Path) -> Facts:
    plan = Plan.load(path)
    _check_size(path, plan.steps, len(plan.sites))
    rows = tuple(tuple(str(row[site]) for site in plan.sites) for row in plan.cells)
    kept = [kept_residuals(plan, step) for step in range(plan.steps)]
    costs = costs_of(plan, rows, kept)
    searched, absent = searched_of(plan)
    bundle = Absent(
        "Buckets, bytes and slots", "a plan has none: compile it, and report on the bundle"
    )
    return Facts(
        source=path.name,
        model=plan.identity.model,
        notes=(
            ("latents", _shape(plan.latents)),
            ("CFG", plan.cfg or "none"),
            ("scheduler", plan.scheduler or "not stated"),
            *notes_of(plan),
        ),
        sites=plan.sites,
        methods=rows,
        totals=tuple(costs.rest + sum(row) for row in costs.spent),
        buckets=None,
        memory=None,
        costs=costs,
        searched=searched,
        absent=(bundle, *absent),
        points=points_of(plan),
        curve=Merging(plan).curve(),
        samples=1 if plan.origin is None else plan.origin.samples,
    )


def _of_bundle(path: Path, variant: str | None) -> Facts:
    manifest = read_manifest(path, variant)
    plan, missing = _plan_inside(path, manifest)
    sites = _sites(path, manifest, plan)
    _check_size(path, manifest.steps, len(sites))
    owners = [manifest.bucket_of(step) for step in range(manifest.steps)]
    rows = tuple(tuple(owner.methods[site] for site in sites) for owner in owners)
    if plan is not None and manifest.calls:  # each call's graph shows a part of the method only
        rows = tuple(
            tuple(str(plan.method(step, site)) for site in sites) for step in range(manifest.steps)
        )
    each = {bucket.name: bucket.multiply_adds for bucket in manifest.buckets}
    spent = [0] * manifest.steps
    for run in manifest.runs:
        spent[run.step] += each[run.bucket]
    totals = tuple(spent)
    costs, searched, absent = None, None, missing
    if plan is not None:
        residuals = {
            slot.name.partition("@")[0]: slot.site
            for slot in manifest.slots
            if slot.kind == "residual"
        }
        kept = [
            frozenset(residuals[name] for name in owner.writes if name in residuals)
            for owner in owners
        ]
        batch = None if plan.origin is None else plan.origin.samples
        ratio = manifest.samples / batch if manifest.samples and batch else None
        costs, unfit = scaled(costs_of(plan, rows, kept), totals, ratio)
        searched, untold = searched_of(plan)
        absent = (*unfit, *untold)
    least, most = manifest.batches
    slots = sum(resized(manifest, most).storage_bytes.values())
    latents, curve = manifest.input_of("latents"), manifest.curve
    return Facts(
        source=path.resolve().name if variant is None else f"{path.resolve().name} {variant}",
        model=manifest.model.class_name,
        notes=(
            ("target", f"{manifest.target}, {manifest.precision}"),
            ("latents", _shape(latents.shape) if latents else "not stated"),
            *(() if manifest.dynamic is None else (("batch", f"{least} to {most} samples"),)),
            ("CFG", manifest.cfg or "none"),
            ("sampler", manifest.sampler.scheduler if manifest.sampler else "none"),
            *(() if plan is None else notes_of(plan)),
            *_merged(manifest),
        ),
        sites=sites,
        methods=rows,
        totals=totals,
        buckets=tuple(owner.name for owner in owners),
        memory=Memory(bytes_by_part(manifest), len(manifest.slots), slots),
        costs=costs,
        searched=searched,
        absent=absent,
        points=None if plan is None else points_of(plan),
        curve=None if curve is None else Curve(curve.costs, curve.full),
        samples=manifest.samples,
    )


def _merged(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Return that steps run milder methods than were found for them, where they do."""
    count = 0 if manifest.curve is None else len(manifest.curve.costs)
    if count <= len(manifest.buckets):
        return ()
    graphs = f"into {len(manifest.buckets)} graphs in place of {count}"
    return (("steps merged", f"{graphs}, each site to its milder method"),)


def _plan_inside(path: Path, manifest: Manifest) -> tuple[Plan | None, tuple[Absent, ...]]:
    """Return the plan a bundle holds, or what is absent without it."""
    what = "Attention and model left, costs of cells, losses"
    file = manifest.file(PLAN_FILE)
    if file not in manifest.files:
        return None, (Absent(what, f"the bundle holds no {file}"),)
    check_files(path, {file: manifest.files[file]})
    check_plan(path, manifest)
    return Plan.load(path / file), ()


def _sites(path: Path, manifest: Manifest, plan: Plan | None) -> tuple[str, ...]:
    """Return the sites of a bundle, checked to be the same in the plan."""
    names = sorted(manifest.buckets[0].methods, key=_by_number)
    for bucket in manifest.buckets:
        where = f"{path}: bucket {bucket.name!r}"
        for site, method in bucket.methods.items():
            if method not in METHODS:
                raise BundleError(
                    f"{where}, site {site!r}: unknown method {method!r}, expected one of "
                    f"{', '.join(METHODS)}; upgrade ditc"
                )
    if plan is None:
        return tuple(names)
    if plan.steps != manifest.steps or set(plan.sites) != set(names):
        raise BundleError(
            f"{path}: {PLAN_FILE} has {plan.steps} steps of {len(plan.sites)} sites, expected the "
            f"manifest's {manifest.steps} of {len(names)}, by the same names; compile it again"
        )
    return plan.sites


def _check_size(path: Path, steps: int, sites: int) -> None:
    if not sites:
        raise DitcError(f"{path}: names no attention site, so there is no plan to show")
    if steps * sites > MAX_CELLS:
        raise DitcError(
            f"{path}: {steps} steps of {sites} sites are too many to draw, expected at most "
            f"{MAX_CELLS} cells"
        )


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort `blocks.10` behind `blocks.2`."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
