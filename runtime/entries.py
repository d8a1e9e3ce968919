"""The entries of a manifest: tensors, slots, buckets and files, each to JSON and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from .dtypes import array_dtype
from .fields import (
    JsonValue,
    read_choice,
    read_dtype,
    read_flag,
    read_integer,
    read_list,
    read_mapping,
    read_name,
    read_names,
    read_object,
    read_sha256,
    read_shape,
)
from .files import check_relative

__all__ = ["BucketInfo", "FileInfo", "InputInfo", "ModelInfo", "OutputInfo", "SlotInfo"]

MAX_STEPS = 10_000
MAX_COUNT = 2**63 - 1
ROLES = ("latents", "timestep", "condition", "guidance")
SLOT_KINDS = ("output", "residual")


@dataclass(frozen=True)
class ModelInfo:
    """The model a bundle was compiled from: its class by import path, its config's SHA-256."""

    class_name: str
    config_sha256: str

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"class": self.class_name, "config_sha256": self.config_sha256}

    @classmethod
    def from_json(cls, value: object, where: str) -> "ModelInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("class", "config_sha256"))
        return cls(
            read_name(found["class"], f"{where}.class"),
            read_sha256(found["config_sha256"], f"{where}.config_sha256"),
        )


@dataclass(frozen=True)
class OutputInfo:
    """An output of the program: its name, full captured shape and numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return _nbytes(self.shape, self.dtype)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: object, where: str) -> "OutputInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("name", "shape", "dtype"))
        return cls(*_read_tensor(found, where, raw=True))


@dataclass(frozen=True)
class InputInfo:
    """An input of the program; its role is "latents", "timestep", "condition" or "guidance".

    One of the role "guidance" is the scale; the program's output is guided then.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        tensor = OutputInfo(self.name, self.shape, self.dtype).to_json()
        return {**tensor, "role": self.role}

    @classmethod
    def from_json(cls, value: object, where: str) -> "InputInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("name", "shape", "dtype", "role"))
        return cls(*_read_tensor(found, where), read_choice(found["role"], f"{where}.role", ROLES))


@dataclass(frozen=True)
class SlotInfo:
    """A buffer between steps; its kind is "output" or "residual", of the named site.

    Slots of the same `storage` number share memory: none holds anything while another does.
    """

    name: str
    site: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    storage: int

    @property
    def nbytes(self) -> int:
        """Bytes the buffer takes."""
        return _nbytes(self.shape, self.dtype)

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        tensor = OutputInfo(self.name, self.shape, self.dtype).to_json()
        return {**tensor, "site": self.site, "kind": self.kind, "storage": self.storage}

    @classmethod
    def from_json(cls, value: object, where: str) -> "SlotInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("name", "site", "kind", "shape", "dtype", "storage"))
        kind = read_choice(found["kind"], f"{where}.kind", SLOT_KINDS)
        name, shape, dtype = _read_tensor(found, where, raw=True)
        site = read_name(found["site"], f"{where}.site")
        storage = read_integer(found["storage"], f"{where}.storage", 0, MAX_COUNT)
        return cls(name, site, kind, shape, dtype, storage)


@dataclass(frozen=True)
class BucketInfo:
    """The steps that run one graph.

    Attributes:
        name: unique in the bundle.
        graph: the graph's path in the bundle, with forward slashes.
        steps: the steps it runs, from 0.
        inputs: the program inputs, and the values of the prologue, that its graph takes.
        reads: the slots its graph takes as inputs, named as the slots.
        writes: the slots its graph gives as outputs besides every program output.
        methods: the method of each site.
        multiply_adds: what one step computes.
        weights: the tensors of the weight store its graph uses, by their names there.
        holds_timestep: whether it runs one step and computes with the sampler's timestep there,
            whatever it is given.
    """

    name: str
    graph: str
    steps: tuple[int, ...]
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    methods: Mapping[str, str]
    multiply_adds: int
    weights: tuple[str, ...]
    holds_timestep: bool = False

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "name": self.name,
            "graph": self.graph,
            "steps": list(self.steps),
            "inputs": list(self.inputs),
            "reads": list(self.reads),
            "writes": list(self.writes),
            "methods": dict(self.methods),
            "multiply_adds": self.multiply_adds,
            "weights": list(self.weights),
            "holds_timestep": self.holds_timestep,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "BucketInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, [field.name for field in fields(cls)])
        methods = read_mapping(found["methods"], f"{where}.methods")
        return cls(
            name=read_name(found["name"], f"{where}.name"),
            graph=check_relative(read_name(found["graph"], f"{where}.graph"), f"{where}.graph"),
            steps=read_list(found["steps"], f"{where}.steps", _read_step),
            inputs=read_names(found["inputs"], f"{where}.inputs"),
            reads=read_names(found["reads"], f"{where}.reads"),
            writes=read_names(found["writes"], f"{where}.writes"),
            methods={
                site: read_name(method, f"{where}.methods.{site}")
                for site, method in methods.items()
            },
            multiply_adds=read_integer(
                found["multiply_adds"], f"{where}.multiply_adds", 0, MAX_COUNT
            ),
            weights=read_names(found["weights"], f"{where}.weights"),
            holds_timestep=read_flag(found["holds_timestep"], f"{where}.holds_timestep"),
        )


@dataclass(frozen=True)
class FileInfo:
    """What a file of the bundle holds: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"sha256": self.sha256, "bytes": self.bytes}

    @classmethod
    def from_json(cls, value: object, where: str) -> "FileInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("sha256", "bytes"))
        size = read_integer(found["bytes"], f"{where}.bytes", 0, MAX_COUNT)
        return cls(read_sha256(found["sha256"], f"{where}.sha256"), size)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * array_dtype(dtype).itemsize


def _read_step(value: object, where: str) -> int:
    return read_integer(value, where, 0, MAX_STEPS - 1)


def _read_tensor(
    found: Mapping[str, object], where: str, *, raw: bool = False
) -> tuple[str, tuple[int, ...], str]:
    """Read a tensor's fields; those that no caller sees may be raw bits of a dtype numpy hasn't."""
    return (
        read_name(found["name"], f"{where}.name"),
        read_shape(found["shape"], f"{where}.shape"),
        read_dtype(found["dtype"], f"{where}.dtype", raw=raw),
    )
