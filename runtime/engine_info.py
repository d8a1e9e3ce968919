"""The record of the engines in a bundle: what built them, and for which GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from .fields import (
    JsonValue,
    read_choice,
    read_flag,
    read_list,
    read_mapping,
    read_name,
    read_object,
)
from .targets import LIBRARIES, WEIGHTS_MODES

__all__ = ["COMPRESSION", "EngineInfo"]

KNOWN = tuple(sorted({name for names in LIBRARIES.values() for name in names}))
COMPRESSION = "xz"
"""Plans repeat the same kernels for every layer, and shrink to a few hundredths."""


@dataclass(frozen=True)
class EngineInfo:
    """What built a bundle's engines.

    Attributes:
        library: the Python module that built them and runs them, as "tensorrt_rtx".
        version: of that library.
        capabilities: compute capabilities of the GPUs they were built for, as "sm89".
        weights: "inputs" where they take weights as inputs, "baked" where they hold them.
        compression: "xz" where their files are compressed, None where they aren't.
        decomposed: sites whose attention has no dedicated kernel in these engines, and why.
        refittable: whether the weights that they hold can be replaced.
    """

    library: str
    version: str
    capabilities: tuple[str, ...]
    weights: str
    compression: str | None = None
    decomposed: Mapping[str, str] = field(default_factory=dict)
    refittable: bool = False

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object; whether weights can be replaced is in it where they are held."""
        refit: dict[str, JsonValue] = {"refittable": True} if self.refittable else {}
        return {
            **refit,
            "library": self.library,
            "version": self.version,
            "capabilities": list(self.capabilities),
            "weights": self.weights,
            "compression": self.compression,
            "decomposed": dict(self.decomposed),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "EngineInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        given = {"refittable": False, **read_mapping(value, where)}
        found = read_object(given, where, [field.name for field in fields(cls)])
        decomposed = read_mapping(found["decomposed"], f"{where}.decomposed")
        return cls(
            library=read_choice(found["library"], f"{where}.library", KNOWN),
            version=read_name(found["version"], f"{where}.version"),
            capabilities=read_list(found["capabilities"], f"{where}.capabilities", read_name),
            weights=read_choice(found["weights"], f"{where}.weights", WEIGHTS_MODES),
            compression=read_choice(
                found["compression"], f"{where}.compression", (COMPRESSION, None)
            ),
            decomposed={
                site: read_name(reason, f"{where}.decomposed.{site}")
                for site, reason in decomposed.items()
            },
            refittable=read_flag(found["refittable"], f"{where}.refittable"),
        )
