"""How a denoiser's arguments become a bundle's inputs, for who stands in the denoiser's place."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from .errors import BundleError
from .fields import (
    JsonValue,
    read_list,
    read_mapping,
    read_name,
    read_object,
    read_sha256,
    read_string,
)

__all__ = ["ArgumentsInfo", "Constant", "digest_of_array"]

Constant = None | bool | int | float | str


def digest_of_array(array: npt.NDArray[np.generic]) -> str:
    """Return the SHA-256 over an array's shape and values, whatever its dtype."""
    values = np.ascontiguousarray(array, np.float64)
    return hashlib.sha256(json.dumps(list(array.shape)).encode() + values.tobytes()).hexdigest()


@dataclass(frozen=True)
class ArgumentsInfo:
    """What a denoiser's call becomes: tensors are inputs, all else is as it was captured.

    Attributes:
        paths: for each input its path in the call's keyword arguments, dotted.
        constants: arguments that are no tensors, by path; those that JSON hasn't as Python
            shows them.
        digests: tensors whose values decided what was captured, by path.
        stacked: arguments that are lists of samples and one tensor as an input.
        scheduler: class name of the scheduler that the plan was found with, None for any.
    """

    paths: Mapping[str, str]
    constants: Mapping[str, Constant]
    digests: Mapping[str, str]
    stacked: tuple[str, ...]
    scheduler: str | None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "paths": dict(self.paths),
            "constants": dict(self.constants),
            "digests": dict(self.digests),
            "stacked": list(self.stacked),
            "scheduler": self.scheduler,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "ArgumentsInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, [field.name for field in fields(cls)])
        maps = {
            name: read_mapping(found[name], f"{where}.{name}")
            for name in ("paths", "constants", "digests")
        }
        scheduler = found["scheduler"]
        return cls(
            {name: read_name(path, f"{where}.paths") for name, path in maps["paths"].items()},
            {
                path: _constant(item, f"{where}.constants.{path}")
                for path, item in maps["constants"].items()
            },
            {path: read_sha256(item, f"{where}.digests") for path, item in maps["digests"].items()},
            read_list(found["stacked"], f"{where}.stacked", read_name),
            None if scheduler is None else read_string(scheduler, f"{where}.scheduler"),
        )


def _constant(value: object, where: str) -> Constant:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BundleError(f"{where}: expected a number, text or null, found a {type(value).__name__}")
