"""Weight variants: a fine-tuned checkpoint into a bundle, whose graphs stay as they are."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os.path import realpath
from pathlib import Path

import torch

from ditc.passes import Plan
from ditc.passes.graphs import dtype_name
from ditc.runtime.engine_info import EngineInfo
from ditc.runtime.errors import BundleError, CaptureError
from ditc.runtime.files import PLAN_FILE, SOURCES_FILE, WEIGHTS_FILE, check_files, read_text
from ditc.runtime.manifest import MANIFEST_FILE, FileInfo
from ditc.runtime.variants import read_index, read_manifest

from .bundle import records, staged
from .checkpoint import Checkpoint
from .describing import is_baked
from .lowered import Source
from .refitting import refit_engines
from .sources import Parameter, Sources, read_sources
from .weights import Entry, Store, write_store

__all__ = ["swap_weights"]

ELSEWHERE = ", on other weights"
"""What the origin of a plan says behind the search, once the weights were swapped."""


def swap_weights(bundle: str | Path, checkpoint: str | Path, out_dir: str | Path) -> Path:
    """Write a bundle of the same graphs with a checkpoint's weights.

    Constants, graphs and the places of all tensors stay to the byte, so that no engine is built;
    engines that hold their weights are refitted, on a GPU.
    The manifest tells the checkpoint's digest, the plan's origin that it was found on others.

    Args:
        bundle: the bundle's folder.
        checkpoint: safetensors file with the model's parameters under their own names; or the
            index of several, or a folder that holds either.
        out_dir: folder to write, which may be the bundle's own.

    Returns:
        The folder written.

    Raises:
        BundleError: if the bundle is damaged, a parameter is missing, unknown, or of another
            shape or dtype, or engines hold their weights and can't be refitted.
        EngineError: if engines that can be refitted lack their library or a GPU here. Nothing is
            written then.
    """
    root = Path(realpath(bundle))
    if not root.is_dir():
        raise BundleError(f"{root}: is no folder, expected a bundle; compile one there")
    index = read_index(root)
    names = (None,) if index is None else index.variants
    manifests = [read_manifest(root, name) for name in names]
    listed = manifests[0].files if index is None else index.files
    check_files(root, listed)
    baked = next((m.engine for m in manifests if is_baked(m.engine)), None)
    record = _sources(root, listed, baked)
    tensors = _checkpoint(Path(checkpoint), record.parameters)
    place = Path(out_dir)
    with staged(place) as folder:
        for path in listed:
            if path != WEIGHTS_FILE:
                shutil.copyfile(root / path, folder / path)
        stores: dict[str, FileInfo] = {}
        if baked is not None:
            refit_engines(folder, baked, record.weights, tensors)
        else:
            store = _swap(root / WEIGHTS_FILE, folder / WEIGHTS_FILE, record.weights, tensors)
            stores[WEIGHTS_FILE] = store.file
        digest = tensors.sha256()
        for manifest in manifests:
            if manifest.file(PLAN_FILE) in listed:
                _mark_plan(folder / manifest.file(PLAN_FILE))
        files = records(folder, stores)
        for manifest in manifests:
            own = {path: files[path] for path in manifest.files}
            swapped = replace(manifest, files=own, weights_sha256=digest)
            _write(folder / manifest.file(MANIFEST_FILE), swapped.to_json())
        if index is not None:
            changed = replace(index, files=records(folder, stores))
            _write(folder / MANIFEST_FILE, changed.to_json())
    return place


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sources(root: Path, listed: Mapping[str, FileInfo], baked: EngineInfo | None) -> Sources:
    if baked is not None and not baked.refittable:
        raise BundleError(
            f"{root}: its engines hold their weights and can't be refitted; compile it again, with "
            "--weights inputs to exchange them at will"
        )
    if SOURCES_FILE not in listed or (baked is None and WEIGHTS_FILE not in listed):
        raise BundleError(f"{root}: doesn't say where its weights come from; compile it again")
    return read_sources(read_text(root, SOURCES_FILE))


def _checkpoint(path: Path, parameters: Mapping[str, Parameter]) -> Checkpoint:
    """Return a checkpoint that holds the parameters of a bundle's model, and nothing else."""
    try:
        checkpoint = Checkpoint(path)
    except CaptureError as error:
        raise BundleError(str(error)) from error
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    for name, expected in parameters.items():
        if name not in shapes:
            raise BundleError(
                f"{path}: lacks {name}, which the bundle's model has; merge adapters into the "
                "whole model first"
            )
        shape, dtype = list(shapes[name]), dtype_name(dtypes[name])
        if shape != list(expected.shape) or dtype != expected.dtype:
            raise BundleError(
                f"{path}: {name} is {dtype} {shape}, the bundle's model has {expected.dtype} "
                f"{list(expected.shape)}; convert it, or compile that model"
            )
    strangers = sorted(set(shapes) - set(parameters))
    if strangers:
        raise BundleError(
            f"{path}: holds {strangers[0]}, which the bundle's model hasn't; it is of another model"
        )
    return checkpoint


def _swap(
    old: Path,
    new: Path,
    sources: Mapping[str, Source],
    tensors: Checkpoint,
) -> Store:
    """Write a store like the old one with a checkpoint's weights in it."""
    held = Checkpoint(old)

    def read(name: str) -> torch.Tensor:
        source = sources.get(name)
        if source is None:
            return held.tensor(name)
        return source.changed(tensors.tensor(source.target))

    shapes, dtypes = held.shapes, held.dtypes
    parts = {name: Entry(shapes[name], dtypes[name], partial(read, name)) for name in shapes}
    return write_store(parts, new)


def _mark_plan(path: Path) -> None:
    plan = Plan.load(path)
    if plan.origin is None or plan.origin.search.endswith(ELSEWHERE):
        return
    found = replace(plan.origin, search=plan.origin.search + ELSEWHERE)
    replace(plan, origin=found).save(path)
