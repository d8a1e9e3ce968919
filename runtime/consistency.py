"""What must hold between the fields of a manifest."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from .calls import calls_of, in_batch, runs_of
from .entries import BucketInfo
from .errors import BundleError
from .files import CONDITIONING_FILE, WEIGHTS_FILE
from .prologue import PrologueInfo
from .slots import needed_writes
from .targets import LIBRARIES

if TYPE_CHECKING:
    from .manifest import Manifest

__all__ = ["check_manifest"]


def check_manifest(manifest: "Manifest") -> None:
    """Check a manifest against itself.

    Raises:
        BundleError: if names repeat or are unknown, a step is in no bucket or several, buckets
            have other sites, a read has no earlier write, the batch has no halves, a file that
            must be there isn't listed, or the engines are another target's.
    """
    _check_names(manifest)
    _check_steps(manifest)
    _check_sites(manifest)
    _check_rows(manifest)
    for bucket in manifest.buckets:
        _check_bucket(manifest, bucket)
    if manifest.prologue is not None:
        _check_prologue(manifest, manifest.prologue)
    _check_runs(manifest)
    _check_halves(manifest)
    _check_dynamic(manifest)
    if manifest.sampler is not None and manifest.sampler.steps != manifest.steps:
        raise BundleError(
            f"sampler: has {manifest.sampler.steps} steps, expected the bundle's {manifest.steps}"
        )
    if manifest.asked is not None:
        manifest.asked.check(manifest.steps)
    _check_listed(manifest)
    _check_engine(manifest)
    _check_decoder(manifest)


def _check_names(manifest: "Manifest") -> None:
    if not manifest.outputs:
        raise BundleError("outputs: is empty, expected at least one output")
    for info in manifest.outputs:
        if info.dtype == "bfloat16":
            raise BundleError(f"output {info.name!r}: is bfloat16, which no caller can be given")
    inputs = [info.name for info in manifest.inputs]
    outputs = [info.name for info in manifest.outputs]
    slots = [info.name for info in manifest.slots]
    values = [info.name for info in manifest.prologue.values] if manifest.prologue else []
    _check_unique("inputs and slots", [*inputs, *values, *slots])
    _check_unique("outputs and slots", [*outputs, *slots])
    _check_unique("buckets", [graph.name for graph in manifest.graphs])
    for role in ("latents", "timestep", "guidance"):
        if sum(info.role == role for info in manifest.inputs) > 1:
            raise BundleError(f"inputs: several have the role {role!r}, expected at most one")


def _check_unique(where: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise BundleError(f"{where}: {count} are named {name!r}, expected each name once")


def _check_steps(manifest: "Manifest") -> None:
    held = Counter(step for bucket in manifest.buckets for step in bucket.steps)
    for step in range(manifest.steps):
        if held[step] != 1 and len(calls_of(manifest.cfg)) == 1:
            raise BundleError(f"buckets: {held[step]} hold step {step}, expected exactly one")
    for step in held:
        if not 0 <= step < manifest.steps:
            raise BundleError(
                f"buckets: one holds step {step}, expected steps 0 to {manifest.steps - 1}"
            )


def _check_sites(manifest: "Manifest") -> None:
    for bucket in manifest.buckets:
        first = manifest.buckets[0]
        if set(bucket.methods) != set(first.methods):
            raise BundleError(
                f"bucket {bucket.name!r}: has other sites than bucket {first.name!r}, expected the "
                "same; compile the bundle again"
            )


def _check_rows(manifest: "Manifest") -> None:
    whole = {info.name for info in manifest.inputs if info.dtype.startswith(("int", "uint"))}
    for name in manifest.rows:
        if name not in whole:
            raise BundleError(f"rows: {name!r} is no input of integers, so it picks no rows")


def _check_bucket(manifest: "Manifest", bucket: BucketInfo) -> None:
    where = f"bucket {bucket.name!r}"
    values = [info.name for info in manifest.prologue.values] if manifest.prologue else []
    inputs = {*(info.name for info in manifest.inputs), *values}
    slots = {info.name for info in manifest.slots}
    if len(calls_of(manifest.cfg)) > 1:  # a graph knows of no call
        slots = {name.partition("@")[0] for name in slots}
    if not bucket.steps:
        raise BundleError(f"{where}: has no steps, expected at least one")
    for field, names, known in (
        ("inputs", bucket.inputs, inputs),
        ("reads", bucket.reads, slots),
        ("writes", bucket.writes, slots),
    ):
        _check_known(where, field, names, known)
    if bucket.holds_timestep and (
        len(bucket.steps) > 1 or manifest.sampler is None or manifest.input_of("timestep") is None
    ):
        raise BundleError(
            f"{where}: holds a timestep, expected one step, a sampler and an input of that role"
        )
    both = sorted(set(bucket.reads) & set(bucket.writes))
    if both:
        raise BundleError(f"{where}: both reads and writes slot {both[0]!r}, expected one of them")
    if bucket.graph not in manifest.files:
        raise BundleError(f"{where}: its graph {bucket.graph!r} isn't in files, expected its hash")


def _check_known(where: str, field: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise BundleError(f"{where}: {field} names {name!r}, expected one of {listed}")


def _check_prologue(manifest: "Manifest", prologue: PrologueInfo) -> None:
    inputs = {info.name for info in manifest.inputs if info.role in ("condition", "timestep")}
    timestep = {info.name for info in manifest.inputs if info.role == "timestep"}
    prompt = {info.name for info in prologue.prompt.outputs} if prologue.prompt else set()
    for part in prologue.parts:
        where = f"prologue {part.name!r}"
        known = inputs - timestep if part is prologue.prompt else inputs | prompt
        _check_known(where, "inputs", part.inputs, known)
        if part.graph not in manifest.files:
            raise BundleError(
                f"{where}: its graph {part.graph!r} isn't in files, expected its hash"
            )
    if prologue.all_steps is None:
        return
    alone = prologue.step.outputs if prologue.step else ()
    expected = tuple(replace(info, shape=(manifest.steps, *info.shape)) for info in alone)
    if not alone or prologue.all_steps.outputs != expected:
        raise BundleError(
            f"prologue {prologue.all_steps.name!r}: its outputs aren't those of one step, "
            f"{manifest.steps} times each; compile the bundle again"
        )


def _check_runs(manifest: "Manifest") -> None:
    runs = runs_of(manifest.cfg, manifest.steps, manifest.buckets, manifest.calls)
    slots = {info.name for info in manifest.slots}
    for run in runs:
        for name in (*run.reads, *run.writes):
            if name not in slots:
                raise BundleError(f"{run.title}: uses slot {name!r}, which isn't among the slots")
    needed_writes(runs, manifest.storages)


def _check_halves(manifest: "Manifest") -> None:
    scale = manifest.input_of("guidance")
    if scale is not None and (not in_batch(manifest.cfg) or scale.shape):
        raise BundleError(
            f"input {scale.name!r}: is a scale of guidance of shape {list(scale.shape)} with cfg "
            f"{manifest.cfg!r}, expected no axes and two halves"
        )
    if manifest.equal_halves and not in_batch(manifest.cfg):
        raise BundleError("equal_halves: is true, but no batch holds both halves")
    latents = manifest.input_of("latents")
    if not in_batch(manifest.cfg) or latents is None:
        return
    if not latents.shape or latents.shape[0] % 2:
        raise BundleError(
            f"input {latents.name!r}: has shape {list(latents.shape)}, expected an even batch "
            f"for the two halves of cfg {manifest.cfg!r}"
        )


def _check_dynamic(manifest: "Manifest") -> None:
    """Check that the batch axes are there, and multiples of the samples that shapes are of."""
    dynamic, latents = manifest.dynamic, manifest.input_of("latents")
    if dynamic is None:
        return
    if latents is None or dynamic.axes.get(latents.name) != 0:
        raise BundleError("dynamic.axes: the latents' batch isn't axis 0, compile the bundle again")
    if not dynamic.least <= manifest.samples <= dynamic.most:
        raise BundleError(
            f"dynamic.batch: is {dynamic.least} to {dynamic.most}, expected {manifest.samples} "
            "samples, as the shapes have, among them"
        )
    shapes = {
        **{entry.name: entry.shape for entry in manifest.inputs},
        **{entry.name: entry.shape for entry in manifest.outputs},
        **{entry.name.partition("@")[0]: entry.shape for entry in manifest.slots},
    }
    if manifest.prologue is not None:
        shapes.update({entry.name: entry.shape for entry in manifest.prologue.values})
    for name, axis in dynamic.axes.items():
        shape = shapes.get(name)
        if shape is None or axis >= len(shape) or shape[axis] % manifest.samples:
            found = "nothing" if shape is None else f"the shape {list(shape)}"
            raise BundleError(
                f"dynamic.axes: names axis {axis} of {name!r}, which has {found}, expected a "
                f"multiple of {manifest.samples} samples there"
            )


def _check_listed(manifest: "Manifest") -> None:
    expected = []
    decoded = manifest.decoder is not None and manifest.decoder.weights
    if decoded or any(graph.weights for graph in manifest.graphs):
        expected.append(WEIGHTS_FILE)
    if manifest.input_of("condition") is not None:
        expected.append(manifest.file(CONDITIONING_FILE))
    for path in expected:
        if path not in manifest.files:
            raise BundleError(f"files: {path!r} is missing, compile the bundle again")


def _check_engine(manifest: "Manifest") -> None:
    found = None if manifest.engine is None else manifest.engine.library
    if manifest.target not in ("onnx", *LIBRARIES):
        return
    expected = LIBRARIES.get(manifest.target, ())
    if (found is None) == (not expected) and (found is None or found in expected):
        return
    raise BundleError(
        f"engine: is {found or 'missing'}, expected {' or '.join(expected) or 'none'} for the "
        f"target {manifest.target!r}; compile the bundle again"
    )


def _check_decoder(manifest: "Manifest") -> None:
    """Refuse a decoder of other latents than the program's, or without its graph."""
    info, latents = manifest.decoder, manifest.input_of("latents")
    if info is None:
        return
    if info.graph not in manifest.files:
        raise BundleError(f"decoder: its graph {info.graph!r} isn't in files, expected its hash")
    whole = [] if latents is None else list(latents.shape)
    axis = info.frames_axis
    one = whole if axis is None else [size for at, size in enumerate(whole) if at != axis]
    if one[1:] != list(info.input.shape[1:]):
        raise BundleError(
            f"decoder: takes {list(info.input.shape)}, which are no latents of the program's "
            f"{whole}"
        )
