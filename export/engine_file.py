"""An engine that was built: its plan, and what came of building it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

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
    """Return an engine as one safetensors file that holds its own digest."""
    record = json.dumps(
        {
            "version": engine.version,
            "decomposed": dict(engine.decomposed),
            "seconds": engine.seconds,
            "peak_bytes": engine.peak_bytes,
        },
        sort_keys=True,
    )
    plan = torch.frombuffer(bytearray(engine.plan), dtype=torch.uint8)
    meta = {"record": record, "sha256": _digest(engine.plan, record)}
    packed: bytes = save({PLAN: plan}, meta)
    return packed


def unpack(raw: bytes, path: str) -> EngineFile | None:
    """Return what `pack` wrote, None if it is damaged.

    Args:
        raw: the file's content.
        path: the file, whose header is read from there.
    """
    try:
        plan = load(raw)[PLAN].numpy().tobytes()
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        if meta["sha256"] != _digest(plan, meta["record"]):
            return None
        found = json.loads(meta["record"])
        return EngineFile(
            plan=plan,
            version=found["version"],
            decomposed=found["decomposed"],
            seconds=found["seconds"],
            peak_bytes=found["peak_bytes"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _digest(plan: bytes, record: str) -> str:
    return hashlib.sha256(record.encode() + plan).hexdigest()
