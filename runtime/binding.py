"""Bind engines to the slots that each run of a generation uses, and to the samples of a batch."""

from collections.abc import Iterable, Mapping

from .engine import Engine, Rebindable, Resizable
from .errors import EngineError
from .manifest import Manifest

__all__ = ["bind", "resize"]

Bound = tuple[tuple[str, ...], Engine]


def bind(manifest: Manifest, engines: Mapping[str, Engine]) -> list[Bound]:
    """Return for each run the inputs of its graph, and an engine on the slots that it uses.

    Engines come bound as their graphs' first runs want it, which is all there is unless a step
    makes two calls.

    Raises:
        EngineError: if an engine can't be bound to other slots and has to be.
    """
    inputs = {bucket.name: bucket.inputs for bucket in manifest.buckets}
    made: dict[tuple[str, ...], Engine] = {}
    found: list[Bound] = []
    for run in manifest.runs:
        key = (run.bucket, *run.slots.values())
        if key not in made:
            fresh = run.bucket not in {name for name, *_ in made}
            engine = engines[run.bucket]
            made[key] = engine if fresh else _bound(run.bucket, engine, run.slots)
        found.append((inputs[run.bucket], made[key]))
    return found


def resize(engines: Iterable[Engine], sized: Manifest) -> None:
    """Have engines, each once, take the shapes of another number of samples.

    Raises:
        EngineError: if one serves one size only.
    """
    for engine in {id(engine): engine for engine in engines}.values():
        if not isinstance(engine, Resizable):
            raise EngineError("the bundle's engines serve one batch size only")
        engine.resize(sized)


def _bound(bucket: str, engine: Engine, slots: Mapping[str, str]) -> Engine:
    if not isinstance(engine, Rebindable):
        raise EngineError(
            f"bucket {bucket!r}: its engine can't change slots between the two calls of a step: "
            "compile for target 'onnx'"
        )
    return engine.bound(slots)
