"""What a manifest says of a schedule: inputs, outputs, slots, buckets and their files."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version

from ditc.passes import Bucket, Program, Slot
from ditc.passes.graphs import dtype_name, flat_outputs
from ditc.runtime.decoder import DECODER
from ditc.runtime.manifest import (
    AskedInfo,
    BucketInfo,
    CurveInfo,
    DecoderInfo,
    EngineInfo,
    FileInfo,
    InputInfo,
    Manifest,
    ModelInfo,
    OutputInfo,
    SlotInfo,
)

from .batching import dynamic_info
from .calling import arguments_info, calls_info
from .decoder import decoder_info
from .engines import ENGINE
from .lowered import Lowered
from .parts import prologue_info
from .preparing import Prepared

__all__ = [
    "file_of",
    "is_baked",
    "manifest_of",
]

GRAPH = ".onnx"
"""How the name of a graph's file ends."""


def is_baked(engine: EngineInfo | None) -> bool:
    """Whether graphs are engines that hold their weights."""
    return engine is not None and engine.weights == "baked"


def file_of(engine: EngineInfo | None, graph: str) -> str:
    """Return the name of the file that holds a graph."""
    return f"{graph}{GRAPH if engine is None else ENGINE}"


def _model_info(program: Program) -> ModelInfo:
    """Return what was compiled."""
    return ModelInfo(program.identity.model, program.identity.config_sha256)


def _input_infos(program: Program) -> tuple[InputInfo, ...]:
    """Return the program's inputs."""
    return tuple(
        InputInfo(entry.name, entry.shape, dtype_name(entry.dtype), entry.role)
        for entry in program.inputs
    )


def _output_infos(program: Program) -> tuple[OutputInfo, ...]:
    """Return the program's outputs."""
    values = [node.meta["val"] for node in flat_outputs(program.graph_module.graph)]
    return tuple(
        OutputInfo(name, tuple(value.shape), dtype_name(value.dtype))
        for name, value in zip(program.outputs, values, strict=True)
    )


def _slot_info(slot: Slot, storage: int) -> SlotInfo:
    """Return a slot with the number of its storage."""
    return SlotInfo(slot.name, slot.site, slot.kind, slot.shape, dtype_name(slot.dtype), storage)


def _bucket_info(bucket: Bucket, lowered: Lowered, engine: EngineInfo | None) -> BucketInfo:
    """Return what a bucket's graph takes, gives and computes."""
    return BucketInfo(
        name=bucket.name,
        graph=file_of(engine, bucket.name),
        steps=bucket.steps,
        inputs=bucket.program.arguments,
        reads=lowered.inputs[len(bucket.program.arguments) :],
        writes=lowered.outputs[len(bucket.program.outputs) :],
        methods={name: str(method) for name, method in bucket.methods.items()},
        multiply_adds=lowered.multiply_adds,
        weights=() if is_baked(engine) else lowered.names,
        holds_timestep=bucket.timestep is not None,
    )


def manifest_of(
    ready: Prepared,
    lowered: Mapping[str, Lowered],
    engine: EngineInfo | None,
    files: Mapping[str, FileInfo],
    target: str,
    precision: str,
) -> Manifest:
    """Return the manifest of a bundle.

    Args:
        ready: what was compiled.
        lowered: its graphs, by name.
        engine: what built their engines; None where they are graphs.
        files: of the bundle, but for the manifest.
        target: by name.
        precision: as it was asked for.
    """
    sched, program, pictures = ready.sched, ready.sched.program, ready.pictures
    return Manifest(
        ditc=version("ditc"),
        target=target,
        precision=precision,
        model=_model_info(program),
        cfg=program.cfg,
        steps=sched.steps,
        inputs=_input_infos(program),
        outputs=_output_infos(program),
        slots=tuple(_slot_info(slot, sched.storages[slot.name]) for slot in sched.slots),
        buckets=tuple(
            _bucket_info(bucket, lowered[bucket.name], engine) for bucket in sched.buckets
        ),
        sampler=ready.table,
        files=files,
        curve=None if sched.curve is None else CurveInfo(sched.curve.costs, sched.curve.full),
        asked=None if sched.asked is None else AskedInfo(sched.asked.key, sched.asked.steps),
        rows=ready.rows,
        calls=calls_info(sched),
        arguments=arguments_info(sched),
        prologue=prologue_info(program, lowered, partial(file_of, engine), baked=is_baked(engine)),
        engine=engine,
        dynamic=dynamic_info(ready.batches, lowered),
        equal_halves=program.folded is not None,
        decoder=None if pictures is None else _decoder(pictures, lowered[DECODER], program, engine),
    )


def _decoder(
    pictures: Program, lowered: Lowered, program: Program, engine: EngineInfo | None
) -> DecoderInfo:
    file, baked = file_of(engine, DECODER), is_baked(engine)
    return decoder_info(pictures, lowered, program, file, baked=baked)
