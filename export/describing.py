"""What a manifest says of a schedule: inputs, outputs, slots, buckets and their files."""

from ditc.passes import Bucket, Program, Slot
from ditc.passes.graphs import dtype_name, flat_outputs
from ditc.runtime.manifest import (
    BucketInfo,
    EngineInfo,
    InputInfo,
    ModelInfo,
    OutputInfo,
    SlotInfo,
)

from .engines import ENGINE
from .lowered import Lowered

__all__ = [
    "bucket_info",
    "file_of",
    "input_infos",
    "is_baked",
    "model_info",
    "output_infos",
    "slot_info",
]

GRAPH = ".onnx"
"""How the name of a graph's file ends."""


def is_baked(engine: EngineInfo | None) -> bool:
    """Whether graphs are engines that hold their weights."""
    return engine is not None and engine.weights == "baked"


def file_of(engine: EngineInfo | None, graph: str) -> str:
    """Return the name of the file that holds a graph."""
    return f"{graph}{GRAPH if engine is None else ENGINE}"


def model_info(program: Program) -> ModelInfo:
    """Return what was compiled."""
    return ModelInfo(program.identity.model, program.identity.config_sha256)


def input_infos(program: Program) -> tuple[InputInfo, ...]:
    """Return the program's inputs."""
    return tuple(
        InputInfo(entry.name, entry.shape, dtype_name(entry.dtype), entry.role)
        for entry in program.inputs
    )


def output_infos(program: Program) -> tuple[OutputInfo, ...]:
    """Return the program's outputs."""
    values = [node.meta["val"] for node in flat_outputs(program.graph_module.graph)]
    return tuple(
        OutputInfo(name, tuple(value.shape), dtype_name(value.dtype))
        for name, value in zip(program.outputs, values, strict=True)
    )


def slot_info(slot: Slot, storage: int) -> SlotInfo:
    """Return a slot with the number of its storage."""
    return SlotInfo(slot.name, slot.site, slot.kind, slot.shape, dtype_name(slot.dtype), storage)


def bucket_info(bucket: Bucket, lowered: Lowered, engine: EngineInfo | None) -> BucketInfo:
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
