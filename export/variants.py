"""Weight variants: a fine-tuned checkpoint into a bundle, whose graphs stay as they are."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ditc.passes.program import Program
from ditc.runtime.errors import BundleError
from ditc.runtime.files import PLAN_FILE, SOURCES_FILE, WEIGHTS_FILE, check_files, read_text
from ditc.runtime.manifest import MANIFEST_FILE, Manifest

from .bundle import records, staged
from .lowered import Lowered, Source

__all__ = ["swap_weights", "write_sources"]

ELSEWHERE = ", on other weights"
"""What the origin of a plan says behind the search, once the weights were swapped."""


def write_sources(path: Path, program: Program, lowered: Iterable[Lowered]) -> None:
    """Write which parameter each stored weight is, and every parameter's shape and dtype."""
    sources = {name: source for part in lowered for name, source in part.weights.items()}
    parameters = dict(program.graph_module.named_parameters(remove_duplicate=False))
    record = {
        "parameters": {
            name: {"shape": list(value.shape), "dtype": _dtype(value.dtype)}
            for name, value in sorted(parameters.items())
        },
        "weights": {
            name: asdict(source)
            for name, source in sorted(sources.items())
            if source.target in parameters
        },
    }
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def swap_weights(bundle: str | Path, checkpoint: str | Path, out_dir: str | Path) -> Path:
    """Write a bundle of the same graphs with a checkpoint's weights.

    Constants, graphs and the places of all tensors stay to the byte, so that no engine is built.
    The manifest tells the checkpoint's digest, the plan's origin that it was found on others.

    Args:
        bundle: the bundle's folder.
        checkpoint: safetensors file with the model's parameters under their own names.
        out_dir: folder to write, which may be the bundle's own.

    Returns:
        The folder written.

    Raises:
        BundleError: if the bundle is damaged or a parameter is missing, unknown, or of another
            shape or dtype; nothing is written then.
    """
    root, given = Path(bundle).resolve(), Path(checkpoint)
    if not root.is_dir():
        raise BundleError(f"{root}: is no folder, expected a bundle; compile one there")
    manifest = Manifest.from_json(read_text(root, MANIFEST_FILE))
    check_files(root, manifest.files)
    record = _sources(root, manifest)
    tensors = _read(given, record["parameters"])
    place = Path(out_dir)
    with staged(place) as folder:
        for name in manifest.files:
            shutil.copyfile(root / name, folder / name)
        _swap(folder / WEIGHTS_FILE, record["weights"], tensors)
        _mark_plan(folder / PLAN_FILE)
        digest = hashlib.sha256(given.read_bytes()).hexdigest()
        swapped = replace(manifest, files=records(folder), weights_sha256=digest)
        (folder / MANIFEST_FILE).write_text(swapped.to_json(), encoding="utf-8")
    return place


def _sources(root: Path, manifest: Manifest) -> Mapping[str, Mapping[str, Mapping[str, object]]]:
    if SOURCES_FILE not in manifest.files or WEIGHTS_FILE not in manifest.files:
        raise BundleError(f"{root}: doesn't say where its weights come from; compile it again")
    found: Mapping[str, Mapping[str, Mapping[str, object]]] = json.loads(
        read_text(root, SOURCES_FILE)
    )
    return found


def _read(path: Path, parameters: Mapping[str, Mapping[str, object]]) -> dict[str, torch.Tensor]:
    """Return the parameters of a checkpoint, all of them checked."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names if name in parameters}
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: can't be read as safetensors: {error}") from error
    for name, expected in parameters.items():
        if name not in tensors:
            raise BundleError(
                f"{path}: lacks {name}, which the bundle's model has; merge adapters into the "
                "whole model first"
            )
        shape, dtype = list(tensors[name].shape), _dtype(tensors[name].dtype)
        if shape != expected["shape"] or dtype != expected["dtype"]:
            raise BundleError(
                f"{path}: {name} is {dtype} {shape}, the bundle's model has {expected['dtype']} "
                f"{expected['shape']}; convert it, or compile that model"
            )
    strangers = sorted(set(names) - set(parameters))
    if strangers:
        raise BundleError(
            f"{path}: holds {strangers[0]}, which the bundle's model hasn't; it is of another model"
        )
    return tensors


def _swap(
    store: Path,
    weights: Mapping[str, Mapping[str, object]],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    with safe_open(store, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    for name, entry in weights.items():
        source = Source(str(entry["target"]), bool(entry["transposed"]))
        value = tensors[source.target]
        held[name] = (value.t() if source.transposed else value).contiguous().clone()
    save_file(held, store)


def _mark_plan(path: Path) -> None:
    plan = json.loads(path.read_text(encoding="utf-8"))
    found = plan["found"]
    if found is not None and not found["search"].endswith(ELSEWHERE):
        found["search"] += ELSEWHERE
    path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
