"""`ditc run` and `ditc verify`: use a bundle; torch isn't needed."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ditc.runtime import Bundle
from ditc.runtime.batches import resized
from ditc.runtime.calls import calls_of
from ditc.runtime.errors import DitcError, EngineError
from ditc.runtime.manifest import Manifest
from ditc.runtime.variants import variants_of

from .arrays import read_array
from .outputs import FPS, SUFFIXES, check_makes, write
from .places import check_place
from .progress import progress

__all__ = ["example_inputs", "generate", "open_bundle", "verify"]

Numbers = npt.NDArray[np.generic]


def open_bundle(options: argparse.Namespace) -> Bundle:
    """Open the bundle that the options name."""
    return Bundle.open(
        options.bundle,
        providers=options.provider,
        threads=options.threads,
        cuda_graphs=options.cuda_graphs,
        batch=getattr(options, "batch", None),
        variant=options.variant,
    )


def generate(options: argparse.Namespace) -> None:
    """Generate as the options ask and write a picture or an array.

    Raises:
        DitcError: if bundle, conditioning or file name are at fault.
    """
    out: Path = options.out
    if out.suffix not in SUFFIXES:
        raise DitcError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    check_place("--out", out)
    if options.fps is not None and out.suffix == ".png":
        raise DitcError(f"--fps {options.fps}: is of videos, but --out {out} is none: leave it out")
    bundle = open_bundle(options)
    check_makes(bundle.manifest, out)
    with progress("generate", bundle.steps) as advance:
        latents = bundle.generate(
            seed=options.seed,
            batch=options.batch,
            guidance_scale=options.guidance_scale,
            negative=_arrays("--negative", options.negative, bundle.manifest) or None,
            callback=lambda *_: advance(),
            **_arrays("--input", options.input, bundle.manifest),
        )
    try:
        shape = write(bundle, latents, out, options.fps or FPS)
    except OSError as error:
        raise DitcError(f"--out {out}: can't be written: {error}") from error
    sys.stdout.write(f"{out}: {list(shape)}, seed {options.seed}\n")


def verify(options: argparse.Namespace) -> None:
    """Check every file of a bundle, then run every step once on made-up inputs.

    Raises:
        DitcError: naming the file or step at fault.
    """
    names = [options.variant]
    if options.variant is None and options.bundle.is_dir():
        names = list(variants_of(options.bundle)) or names
    found = [_verify(argparse.Namespace(**{**vars(options), "variant": name})) for name in names]
    if options.json:
        sys.stdout.write(json.dumps(found[0] if len(found) == 1 else found) + "\n")


def _verify(options: argparse.Namespace) -> dict[str, object]:
    """Verify one variant, say so unless a program asks, and return a summary."""
    bundle = open_bundle(options)
    manifest = bundle.manifest
    sizes = sorted(set(manifest.batches))
    with progress("run every step", len(sizes) * bundle.steps) as advance:
        for samples in sizes:
            for step in range(bundle.steps):
                inputs = example_inputs(resized(manifest, samples), step)
                for call in calls_of(manifest.cfg):
                    _check_finite(step, bundle.step(step, call, **inputs))
                advance()
    total = sum(record.bytes for record in manifest.files.values())
    summary: dict[str, object] = {
        "ok": True,
        "files": len(manifest.files),
        "bytes": total,
        "steps": bundle.steps,
    }
    if options.variant is not None:
        summary["variant"] = options.variant
    if options.json:
        return summary
    which = "" if options.variant is None else f", variant {options.variant}"
    sys.stdout.write(
        f"{options.bundle}{which}: {len(manifest.files)} files ({total / 1e6:.2f} MB) are as "
        "written, "
        f"{len(manifest.buckets)} buckets run all {bundle.steps} steps"
        f"{f' at {sizes[0]} and {sizes[-1]} samples' if len(sizes) > 1 else ''}\n"
    )
    return summary


def example_inputs(manifest: Manifest, step: int = 0) -> dict[str, Numbers]:
    """Return inputs of a bundle's shapes: seeded noise, and zeros where integers are wanted."""
    generator = np.random.default_rng(0)
    timestep = manifest.sampler.timesteps[step] if manifest.sampler else 1.0
    inputs: dict[str, Numbers] = {}
    for entry in manifest.inputs:
        if entry.role == "timestep":  # a real one: models take logarithms and roots of it
            inputs[entry.name] = np.full(entry.shape, timestep, entry.dtype)
        elif entry.role == "guidance":
            inputs[entry.name] = np.full(entry.shape, 1.0, entry.dtype)
        elif np.issubdtype(np.dtype(entry.dtype), np.floating):
            inputs[entry.name] = generator.standard_normal(entry.shape).astype(entry.dtype)
        else:
            inputs[entry.name] = np.zeros(entry.shape, entry.dtype)
    return inputs


def _check_finite(step: int, result: Numbers | Mapping[str, Numbers]) -> None:
    arrays = result.values() if isinstance(result, Mapping) else (result,)
    if not all(np.isfinite(array).all() for array in arrays):
        raise EngineError(f"step {step}: the result isn't finite on random inputs")


def _arrays(option: str, given: Iterable[str], manifest: Manifest) -> dict[str, Numbers]:
    dtypes = {entry.name: entry.dtype for entry in manifest.inputs if entry.role == "condition"}
    arrays: dict[str, Numbers] = {}
    for name, array in (_array(option, text, dtypes) for text in given):
        if name in arrays:
            raise DitcError(f"{option} {name}: is given twice, expected once")
        arrays[name] = array
    return arrays


def _array(option: str, text: str, dtypes: Mapping[str, str]) -> tuple[str, Numbers]:
    """Parse `name=1,2,3` or `name=file.npy`."""
    name, equals, values = text.partition("=")
    if not equals or name not in dtypes:
        known = ", ".join(dtypes) or "none"
        raise DitcError(f"{option} {text}: expected NAME=VALUES, with a name of {known}")
    if values.endswith(".npy"):
        return name, read_array(Path(values), f"{option} {name}: {values}")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError as error:
        raise DitcError(f"{option} {name}: {error}") from error
    with np.errstate(invalid="ignore", over="ignore"):  # looked at below
        array = np.array(numbers).astype(dtypes[name])
    rounded = np.issubdtype(array.dtype, np.floating)
    if not (np.isfinite(array).all() if rounded else np.array_equal(array, numbers)):
        raise DitcError(f"{option} {name}: {values} doesn't fit {dtypes[name]}")
    return name, array
