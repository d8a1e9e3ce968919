"""Where a bundle's stored weights come from: written as it is compiled, read to swap them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ditc.passes.graphs import dtype_name
from ditc.passes.program import Program
from ditc.runtime.errors import BundleError
from ditc.runtime.fields import (
    load_json,
    read_choice,
    read_flag,
    read_integer,
    read_list,
    read_mapping,
    read_name,
    read_object,
)
from ditc.runtime.files import SOURCES_FILE

from .lowered import Lowered, Source
from .tensors import NAMES

__all__ = ["Parameter", "Sources", "read_sources", "write_sources"]

LARGEST = 2**40
DTYPES = tuple(sorted({dtype_name(dtype) for dtype in NAMES}))


@dataclass(frozen=True)
class Parameter:
    """Shape and dtype of a parameter of the model, the dtype as torch names it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Sources:
    """The model's parameters, and where each stored weight comes from."""

    parameters: Mapping[str, Parameter]
    weights: Mapping[str, Source]


def write_sources(path: Path, program: Program, lowered: Iterable[Lowered]) -> None:
    """Write which parameter each stored weight is, and every parameter's shape and dtype."""
    sources = {name: source for part in lowered for name, source in part.weights.items()}
    parameters = dict(program.graph_module.named_parameters(remove_duplicate=False))
    record = {
        "parameters": {
            name: {"shape": list(value.shape), "dtype": dtype_name(value.dtype)}
            for name, value in sorted(parameters.items())
        },
        "weights": {
            name: asdict(source)
            for name, source in sorted(sources.items())
            if source.target in parameters
        },
    }
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_sources(text: str) -> Sources:
    """Return what `write_sources` wrote.

    Raises:
        BundleError: if it is anything else.
    """
    found = read_object(load_json(text, SOURCES_FILE), SOURCES_FILE, ("parameters", "weights"))
    parameters = {
        name: _parameter(value, f"{SOURCES_FILE}: {name}")
        for name, value in read_mapping(found["parameters"], f"{SOURCES_FILE}: parameters").items()
    }
    weights = {
        name: _source(value, f"{SOURCES_FILE}: {name}")
        for name, value in read_mapping(found["weights"], f"{SOURCES_FILE}: weights").items()
    }
    for name, source in weights.items():
        if source.target not in parameters:
            raise BundleError(
                f"{SOURCES_FILE}: {name} comes from {source.target!r}, which is no parameter; "
                "compile the bundle again"
            )
    return Sources(parameters, weights)


def _parameter(value: object, where: str) -> Parameter:
    found = read_object(value, where, ("shape", "dtype"))
    shape = read_list(found["shape"], where, lambda item, at: read_integer(item, at, 0, LARGEST))
    return Parameter(shape, read_choice(found["dtype"], where, DTYPES))


def _source(value: object, where: str) -> Source:
    found = read_object(value, where, ("target", "transposed", "dtype"))
    return Source(
        read_name(found["target"], where),
        read_flag(found["transposed"], where),
        read_choice(found["dtype"], where, (*DTYPES, None)),
    )
