"""Join bundles of one model into a folder of variants: each tensor of their weights once."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import onnx
import torch

from ditc.passes import Schedule
from ditc.runtime.errors import LoweringError
from ditc.runtime.fields import JsonValue, canonical_json, digest_of
from ditc.runtime.files import MANIFEST_FILE, SOURCES_FILE, WEIGHTS_FILE, check_files
from ditc.runtime.manifest import FileInfo, Manifest
from ditc.runtime.variants import Index, check_variant_name, read_manifest

from .bundle import records, staged
from .checkpoint import Checkpoint
from .compiling import compile  # noqa: A004 (the public name)
from .references import point_at
from .weights import Entry, Store, write_store

__all__ = ["compile_variants", "joined"]

SHARED = (WEIGHTS_FILE, SOURCES_FILE)
PARTS = ".parts"
"""Folder in which variants are compiled, within that which takes the bundle's place."""

Build = Callable[[str, Schedule, Path], object]


def compile_variants(
    schedules: Mapping[str, Schedule], out_dir: str | Path, build: Build | None = None
) -> Path:
    """Compile schedules of one model, as for several resolutions, into one bundle.

    Weights that are the same are stored once. Open a variant with `Bundle.open(path,
    variant=name)`.

    Args:
        schedules: by the variant's name, as `512x512`.
        out_dir: the bundle's folder; a bundle that lies there is replaced once the new one is
            complete.
        build: called with name, schedule and a folder, compiles the schedule into it; `compile`
            with nothing else stated if None.

    Returns:
        The bundle's folder.

    Raises:
        LoweringError: as `compile` does, or if the schedules are of different models.
        BundleError: if a name can't be one, or the bundle can't be written there. Nothing
            half-written is left.
    """
    make = build or _build
    return joined(tuple(schedules), out_dir, lambda name, part: make(name, schedules[name], part))


def _build(name: str, sched: Schedule, place: Path) -> None:
    del name
    compile(sched, place)


def joined(names: Sequence[str], out_dir: str | Path, build: Callable[[str, Path], object]) -> Path:
    """Build a bundle for each name and join them into one, as variants that share their weights.

    Args:
        names: of the variants.
        out_dir: the bundle's folder; a bundle that lies there is replaced at the end.
        build: called with a name and a folder, writes a bundle into it.

    Returns:
        The bundle's folder.

    Raises:
        LoweringError: if there are none, they aren't of one model, target and precision, or a
            parameter isn't the same in all.
        BundleError: if a name can't be one, or the bundle can't be written there.
    """
    if not names:
        raise LoweringError("no variants were given, expected at least one")
    for name in names:
        check_variant_name(name, "variant")
    place = Path(out_dir)
    with staged(place) as folder:
        parts = {name: folder / PARTS / name for name in names}
        for name, part in parts.items():
            build(name, part)
        _join(parts, folder)
        (folder / PARTS).rmdir()
    return place


def _join(bundles: Mapping[str, Path], folder: Path) -> None:
    """Move bundles into a folder, as variants that share one weight store.

    Args:
        bundles: by the variant's name; their folders are removed.
        folder: where; it has no manifest yet.

    Raises:
        LoweringError: if they aren't of one model, target and precision, or a parameter isn't the
            same in all.
        BundleError: if one is damaged.
    """
    manifests = {name: read_manifest(path) for name, path in bundles.items()}
    for name, path in bundles.items():
        check_files(path, manifests[name].files)
    _check_alike(manifests)
    names, store = _join_weights(manifests, bundles, folder)
    known: dict[str, FileInfo] = {} if store is None else {WEIGHTS_FILE: store.file}
    for name, path in bundles.items():
        manifest = manifests[name]
        for file in manifest.files:
            if file in SHARED:
                continue
            target = folder / f"{name}.{file}"
            if file.endswith(".onnx") and store is not None:
                _move_graph(path / file, target, names[name], store)
            else:
                (path / file).rename(target)
    _join_sources(bundles, folder)
    for path in bundles.values():
        shutil.rmtree(path)
    files = records(folder, known)
    for name, manifest in manifests.items():
        text = _renamed(name, manifest, names[name], files).to_json()
        (folder / f"{name}.{MANIFEST_FILE}").write_text(text, encoding="utf-8")
    index = Index(tuple(manifests), records(folder, files))
    (folder / MANIFEST_FILE).write_text(index.to_json(), encoding="utf-8")


def _check_alike(manifests: Mapping[str, Manifest]) -> None:
    for (one, first), (other, second) in combinations(manifests.items(), 2):
        for what, found, expected in (
            ("model", second.model, first.model),
            ("target", second.target, first.target),
            ("precision", second.precision, first.precision),
        ):
            if found != expected:
                raise LoweringError(
                    f"variant {other}: has {what} {found}, variant {one} has {expected}: variants "
                    "of a bundle are of one model, target and precision"
                )


def _join_weights(
    manifests: Mapping[str, Manifest], bundles: Mapping[str, Path], folder: Path
) -> tuple[dict[str, dict[str, str]], Store | None]:
    """Write the store; return the names that tensors have in it, by variant and old name."""
    entries: dict[str, Entry] = {}
    origin: dict[str, str] = {}
    names: dict[str, dict[str, str]] = {name: {} for name in manifests}
    for variant, path in bundles.items():
        if WEIGHTS_FILE not in manifests[variant].files:
            continue
        held, parameters = Checkpoint(path / WEIGHTS_FILE), _parameters(path)
        for name in held.shapes:
            entry = Entry(held.shapes[name], held.dtypes[name], partial(held.tensor, name))
            new = name
            if name in entries and not _same(entries[name], entry):
                if name in parameters or manifests[variant].target != "onnx":
                    raise LoweringError(
                        f"weight {name} differs between variants {origin[name]} and {variant}: "
                        "compile both from one model"
                    )
                new = f"{variant}.{name}"
            names[variant][name] = new
            entries.setdefault(new, entry)
            origin.setdefault(new, variant)
    return names, write_store(entries, folder / WEIGHTS_FILE) if entries else None


def _same(one: Entry, other: Entry) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(entry.read().view(-1).view(torch.uint8) for entry in (one, other)))


def _parameters(bundle: Path) -> set[str]:
    """Return the names of the stored tensors that are the model's parameters."""
    return set(_sources(bundle)["weights"])


def _sources(bundle: Path) -> dict[str, dict[str, object]]:
    path = bundle / SOURCES_FILE
    if not path.exists():
        return {"parameters": {}, "weights": {}}
    found: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _join_sources(bundles: Mapping[str, Path], folder: Path) -> None:
    joined: dict[str, dict[str, object]] = {}
    for path in bundles.values():
        for part, entries in _sources(path).items():
            joined.setdefault(part, {}).update(entries)
    if joined["weights"]:
        text = json.dumps(joined, indent=1, sort_keys=True) + "\n"
        (folder / SOURCES_FILE).write_text(text, encoding="utf-8")


def _move_graph(path: Path, target: Path, names: Mapping[str, str], store: Store) -> None:
    """Write a graph whose weights lie in the joint store."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.name = names[tensor.name]
    point_at(model, WEIGHTS_FILE, store.places)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
    target.write_bytes(model.SerializeToString(deterministic=True))
    path.unlink()


def _renamed(
    variant: str, manifest: Manifest, names: Mapping[str, str], files: Mapping[str, FileInfo]
) -> Manifest:
    """Return a manifest of the variant: every name of a file or weight in it as it is now."""
    moved = {file: f"{variant}.{file}" for file in manifest.files if file not in SHARED}
    body = _walked(json.loads(manifest.to_json()), {**moved, **names})
    assert isinstance(body, dict)
    kept = {moved.get(file, file) for file in manifest.files}
    body["files"] = {file: info.to_json() for file, info in files.items() if file in kept}
    body["variant"] = variant
    del body["digest"]
    return Manifest.from_json(canonical_json({**body, "digest": digest_of(body)}))


def _walked(value: JsonValue, names: Mapping[str, str]) -> JsonValue:
    if isinstance(value, dict):
        return {key: _walked(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_walked(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
