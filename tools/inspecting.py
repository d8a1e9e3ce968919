"""`ditc inspect`: show what a bundle or a plan holds, without torch."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditc.passes import Plan, plan_schema
from ditc.passes.showing import ranges
from ditc.runtime.batches import resized
from ditc.runtime.calls import calls_of
from ditc.runtime.errors import DitcError
from ditc.runtime.files import check_sizes
from ditc.runtime.manifest import WEIGHTS_FILE, Manifest
from ditc.runtime.variants import Index, read_index, read_manifest

from .counted import counted
from .report_words import byte_size, quantity

if TYPE_CHECKING:
    from ditc.passes.curve import Curve

__all__ = ["LETTERS", "bytes_by_part", "check_is_bundle", "inspect", "show_schema"]

LETTERS = {"full": "#", "asc": "c", "wa-rs": "w", "wa-rs+asc": "b", "ast": "."}
LEGEND = "# full   c asc   w wa-rs   b wa-rs+asc   . ast"


def inspect(path: Path, *, variant: str | None = None, as_json: bool = False) -> None:
    """Print what a bundle folder or a plan file holds.

    Args:
        path: of either.
        variant: of a folder that holds several; all in short if None.
        as_json: for programs to read.

    Raises:
        DitcError: if the path holds neither, or a bundle's file is missing or of another size.
    """
    if path.is_dir():
        text = _bundle_text(path, variant, as_json=as_json)
    elif path.is_file():
        check_is_bundle(path, variant)
        text = _plan_text(path, as_json=as_json)
    else:
        raise DitcError(f"{path}: no bundle folder and no plan file is there")
    sys.stdout.write(text)


def check_is_bundle(path: Path, variant: str | None) -> None:
    """Refuse to look for a variant in a file, which is a plan; None looks for none.

    Raises:
        DitcError: if one is named.
    """
    if variant is not None:
        raise DitcError(f"--variant {variant}: is of bundles, {path} is a file: leave it out")


def show_schema() -> None:
    """Print the JSON Schema of plan files."""
    sys.stdout.write(json.dumps(plan_schema(), indent=2) + "\n")


def _bundle_text(path: Path, variant: str | None, *, as_json: bool) -> str:
    index = read_index(path) if variant is None else None
    if index is not None:
        check_sizes(path, index.files)
        return index.to_json() if as_json else "\n".join(_variant_lines(path, index)) + "\n"
    manifest = read_manifest(path, variant)
    check_sizes(path, manifest.files)
    return manifest.to_json() if as_json else "\n".join(_bundle_lines(path, manifest)) + "\n"


def _variant_lines(path: Path, index: Index) -> Iterator[str]:
    """Yield what variants have in common, and a line on each."""
    total = sum(record.bytes for record in index.files.values())
    yield f"bundle     {path}"
    yield f"bytes      {byte_size(total)}, of which all variants share the weights"
    for name in index.variants:
        manifest = read_manifest(path, name)
        latents = manifest.input_of("latents")
        slots = sum(resized(manifest, manifest.batches[1]).storage_bytes.values())
        yield (
            f"variant    {name}: latents {list(latents.shape) if latents else 'none'}, "
            f"{manifest.steps} steps, {len(manifest.buckets)} buckets of "
            f"{byte_size(bytes_by_part(manifest)['graphs'])}, {byte_size(slots)} of slots"
        )
    yield "each in full with --variant NAME"


def bytes_by_part(manifest: Manifest) -> dict[str, int]:
    """Return a bundle's bytes of weights, of graphs, and of all else."""
    parts = {"weights": 0, "graphs": 0, "other": 0}
    graphs = {graph.graph for graph in manifest.graphs}
    for name, record in manifest.files.items():
        part = "weights" if name == WEIGHTS_FILE else "other"
        parts["graphs" if name in graphs else part] += record.bytes
    return parts


def _bundle_lines(path: Path, manifest: Manifest) -> Iterator[str]:
    parts = bytes_by_part(manifest)
    yield f"bundle     {path}"
    yield f"model      {manifest.model.class_name}"
    if manifest.weights_sha256 is not None:
        yield f"weights    swapped for those of {manifest.weights_sha256}; the plan is of others"
    yield f"target     {manifest.target}, {manifest.precision}, CFG {manifest.cfg or 'none'}"
    yield from _engine(manifest)
    yield f"sampler    {manifest.sampler.scheduler if manifest.sampler else 'none'}"
    yield "bytes      " + ", ".join(f"{name} {byte_size(size)}" for name, size in parts.items())
    least, largest = manifest.batches
    if manifest.dynamic is not None:
        yield f"batch      {least} to {largest} samples; shapes are of {manifest.samples}"
    for entry in manifest.inputs:
        yield f"input      {entry.name} {entry.dtype} {list(entry.shape)} ({entry.role})"
    for output in manifest.outputs:
        yield f"output     {output.name} {output.dtype} {list(output.shape)}"
    storages = resized(manifest, largest).storage_bytes
    most = "" if manifest.dynamic is None else f" for {largest} samples"
    yield (
        f"slots      {len(manifest.slots)} in {counted(len(storages), 'storage')}, "
        f"{byte_size(sum(storages.values()))}{most}"
    )
    yield from _prologue(manifest)
    yield from _decoder(manifest)
    yield from _left(path, manifest)
    yield ""
    full = max(bucket.multiply_adds for bucket in manifest.buckets) or 1
    yield "bucket  multiply-adds  of most  reads  writes  steps"
    for bucket in manifest.buckets:
        yield (
            f"{bucket.name:<6}  {quantity(bucket.multiply_adds):>13}  "
            f"{bucket.multiply_adds / full:>7.1%}  {len(bucket.reads):>5}  "
            f"{len(bucket.writes):>6}  {ranges(bucket.steps)}"
        )
    yield ""
    if manifest.curve is not None:
        from ditc.passes.curve import Curve

        yield from _curve(Curve(manifest.curve.costs, manifest.curve.full), len(manifest.buckets))
        yield ""
    methods = {bucket.name: bucket.methods for bucket in manifest.buckets}
    for call in calls_of(manifest.cfg):
        if call:
            yield f"the {call}itional call:"
        yield from _grid([methods[run.bucket] for run in manifest.runs if run.call == call])


def _engine(manifest: Manifest) -> Iterator[str]:
    """Yield what built the engines, for which GPUs, and where they have no dedicated kernel."""
    info = manifest.engine
    if info is None:
        return
    gpus = ", ".join(info.capabilities) or "the GPU they were built on"
    held = f"{info.weights}, which can be refitted" if info.refittable else info.weights
    yield f"engines    {info.library} {info.version}, for {gpus}, weights {held}"
    for site, reason in info.decomposed.items():
        yield f"           {site}: attention written out: {reason}"


def _prologue(manifest: Manifest) -> Iterator[str]:
    """Yield what runs before the steps, what is kept of it, and what the steps are spared."""
    prologue = manifest.prologue
    if prologue is None:
        yield "prologue   none"
        return
    yield (
        f"prologue   {byte_size(prologue.stored_bytes)} kept; spares the steps "
        f"{byte_size(prologue.weight_bytes)} of weights and {quantity(prologue.multiply_adds)} "
        "multiply-adds each"
    )
    last = prologue.all_steps or prologue.step
    for often, part in (("a prompt", prologue.prompt), ("all steps", last)):
        if part is not None:
            size = sum(info.nbytes for info in part.outputs)
            yield (
                f"           once for {often}: {', '.join(part.inputs) or 'weights alone'} to "
                f"{counted(len(part.outputs), 'value')} of {byte_size(size)}, "
                f"{quantity(part.multiply_adds)} multiply-adds"
            )


def _decoder(manifest: Manifest) -> Iterator[str]:
    """Yield what makes pictures of the latents, where anything does."""
    info = manifest.decoder
    if info is not None:
        yield (
            f"decoder    {list(info.input.shape)} to {list(info.output.shape)}, "
            f"{quantity(info.multiply_adds)} multiply-adds a picture"
        )


def _left(path: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what is left of the uncompressed multiply-adds, where the bundle's plan tells."""
    from .report_data import read_facts  # which draws on this module

    try:
        costs = read_facts(path, manifest.variant).costs
    except DitcError as error:
        yield f"left       not known: {error}"
        return
    if costs is not None:
        yield _share(costs.attention_left, costs.model_left)


def _share(attention: float, model: float) -> str:
    return f"left       {attention:.1%} of attention and {model:.1%} of the model's multiply-adds"


def _plan_text(path: Path, *, as_json: bool) -> str:
    from ditc.passes.merging import Merging

    from .report_plan import notes_of

    plan = Plan.load(path)
    if as_json:
        return plan.to_json()
    lines = [
        f"plan       {path}",
        f"model      {plan.identity.model}",
        f"latents    {list(plan.latents)}, CFG {plan.cfg or 'none'}",
        f"steps      {plan.steps}, scheduler {plan.scheduler or 'not stated'}",
        *(f"{label:<9}  {text}" for label, text in notes_of(plan)),
        _share(plan.attention_left(), plan.multiply_adds_left()),
        "",
        *_grid(plan.cells),
        "",
        *_curve(Merging(plan).curve()),
    ]
    return "\n".join(lines) + "\n"


def _curve(curve: "Curve", here: int | None = None) -> Iterator[str]:
    """Yield what a limit on buckets would cost: as many lines as tell of the bend."""
    yield f"buckets    {curve.buckets} without a limit; the knee of the curve is at {curve.knee}"
    yield "limit      of the saving kept   attention's predicted cost against no limit"
    shown = {*(2**power for power in range(20)), curve.knee, curve.buckets, here or 1}
    for limit in sorted(limit for limit in shown if limit <= curve.buckets):
        mark = "   here" if limit == here else ""
        yield f"{limit:>5}      {curve.kept(limit):>20.1%}   {curve.slowdown(limit):.2f} x{mark}"


def _grid(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield a picture of methods: a line a site, a column a step."""
    sites = list(rows[0])
    width = max((len(site) for site in sites), default=4)
    yield f"{'site':<{width}}  steps 0 to {len(rows) - 1}"
    for site in sites:
        yield f"{site:<{width}}  " + "".join(LETTERS.get(row[site], "?") for row in rows)
    yield LEGEND
    counts = Counter(str(row[site]) for row in rows for site in sites)
    total = sum(counts.values()) or 1
    yield ", ".join(f"{name} {counts[name] / total:.0%}" for name in LETTERS if counts[name])
