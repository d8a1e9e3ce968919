"""An engine that was built: its plan, and what came of building it."""

from collections.abc import Mapping
from dataclasses import dataclass

from .sealed import bytes_of, seal, tensor_of, unseal

__all__ = ["EngineFile", "pack", "unpack"]

PLAN = "plan"


@dataclass(frozen=True, eq=False)
class EngineFile:
    """A built engine.

    Attributes:
        plan: serialised, as the library reads it.
        version: of the library that built it.
        decomposed: attentions without a dedicated kernel, by their names in the graph, and why.
        seconds: the build took.
        peak_bytes: of memory the build's process held.
    """

    plan: bytes
    version: str
    decomposed: Mapping[str, str]
    seconds: float
    peak_bytes: int


def pack(engine: EngineFile) -> bytes:
    """Return an engine as a file's content."""
    record = {
        "version": engine.version,
        "decomposed": dict(engine.decomposed),
        "seconds": engine.seconds,
        "peak_bytes": engine.peak_bytes,
    }
    return seal({PLAN: tensor_of(engine.plan)}, record)


def unpack(raw: bytes, path: str) -> EngineFile | None:
    """Return what `pack` wrote, None if it is damaged; arguments as of `unseal`."""
    return unseal(raw, path, lambda held, record: EngineFile(bytes_of(held[PLAN]), **record))
