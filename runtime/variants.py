"""Variants: several bundles in one folder, as for several resolutions, that share their weights.

The folder's manifest lists them and every file. Each has a manifest of its own, and files whose
names begin with the variant's; the weight store is the same file for all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .entries import FileInfo
from .errors import BundleError
from .fields import (
    JsonValue,
    canonical_json,
    digest_of,
    load_json,
    read_list,
    read_mapping,
    read_object,
    read_string,
)
from .files import MANIFEST_FILE, check_files, check_relative, read_text
from .manifest import FORMAT, VERSION, Manifest, read_version

__all__ = ["PIPELINE", "Index", "check_variant_name", "read_index", "read_manifest", "variants_of"]

PIPELINE = "model_index.json"
"""The file that tells a folder of a diffusers pipeline."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Index:
    """What a folder of several variants holds.

    Attributes:
        variants: their names, in the order in which they were given.
        files: every file but the index, by its name.
    """

    variants: tuple[str, ...]
    files: Mapping[str, FileInfo]

    def to_json(self) -> str:
        """Return the canonical JSON text, with the digest in it."""
        body: dict[str, JsonValue] = {
            "format": FORMAT,
            "version": VERSION,
            "variants": list(self.variants),
            "files": {path: info.to_json() for path, info in self.files.items()},
        }
        return canonical_json({**body, "digest": digest_of(body)})

    @classmethod
    def from_json(cls, value: dict[str, JsonValue]) -> "Index":
        """Return what `to_json` wrote, or raise BundleError."""
        names = ("format", "version", "digest", "variants", "files")
        found = read_object(value, MANIFEST_FILE, names)
        body = {key: item for key, item in value.items() if key != "digest"}
        if found["digest"] != digest_of(body):
            raise BundleError(
                f"{MANIFEST_FILE}: the digest isn't that of its content; it was changed, copy or "
                "compile the bundle again"
            )
        variants = read_list(found["variants"], "variants", check_variant_name)
        if not variants or len(set(variants)) != len(variants):
            raise BundleError(f"variants: are {list(variants)}, expected names, each once")
        files = read_mapping(found["files"], "files")
        return cls(
            variants,
            {
                check_relative(path, "files"): FileInfo.from_json(info, f"files.{path}")
                for path, info in files.items()
            },
        )


def check_variant_name(name: object, where: str) -> str:
    """Return a name that files may begin with, or raise BundleError."""
    text = read_string(name, where)
    if not NAME.fullmatch(text):
        raise BundleError(
            f"{where}: is {text!r}, expected letters, digits, '-' and '_', as in 512x512"
        )
    return text


def read_index(root: Path) -> Index | None:
    """Return the index of a folder of several variants, None for a bundle of one.

    Raises:
        BundleError: if there is no bundle, or its manifest is malformed.
    """
    manifest = root / MANIFEST_FILE
    if not manifest.exists() and not manifest.is_symlink():
        if (root / PIPELINE).is_file():
            raise BundleError(
                f"{root}: is a diffusers pipeline, no bundle: compile it with 'ditc compile'"
            )
        raise BundleError(
            f"{root}: is no bundle: it holds no {MANIFEST_FILE}: name a folder that 'ditc compile' "
            "wrote, or copy that whole"
        )
    value = read_version(load_json(read_text(root, MANIFEST_FILE), MANIFEST_FILE))
    return Index.from_json(value) if "variants" in value else None


def variants_of(root: Path) -> tuple[str, ...]:
    """Return the names of a folder's variants, none for a bundle of one; errors as read_index."""
    index = read_index(root)
    return () if index is None else index.variants


def read_manifest(root: Path, variant: str | None = None) -> Manifest:
    """Return the manifest of a bundle, of one of its variants where it has several.

    Raises:
        BundleError: if there is no bundle or no such variant, one has to be named, or a manifest
            is malformed.
    """
    index = read_index(root)
    if index is None:
        if variant is not None:
            raise BundleError(f"{root}: holds no variants, so there is no {variant!r}")
        return Manifest.from_json(read_text(root, MANIFEST_FILE))
    known = ", ".join(index.variants)
    if variant is None:
        raise BundleError(f"{root}: holds the variants {known}: name one, by --variant or variant=")
    if variant not in index.variants:
        raise BundleError(f"{root}: holds no variant {variant!r}, expected one of {known}")
    file = f"{variant}.{MANIFEST_FILE}"
    check_files(root, {file: _listed(index, file)})
    manifest = Manifest.from_json(read_text(root, file))
    if manifest.variant != variant:
        raise BundleError(f"{file}: is of variant {manifest.variant!r}, compile the bundle again")
    for path, info in manifest.files.items():
        if _listed(index, path) != info:
            raise BundleError(f"{file}: tells of another {path} than {MANIFEST_FILE} does")
    return manifest


def _listed(index: Index, path: str) -> FileInfo:
    if path not in index.files:
        raise BundleError(f"{MANIFEST_FILE}: files: {path!r} is missing, compile the bundle again")
    return index.files[path]
