"""The manifest of a bundle: what it computes, its buckets, and the digest of every file.

The exporter builds a `Manifest` and writes `to_json()`; the runtime reads it with `from_json`,
which trusts nothing. `consistency.py` holds the rules that span several fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Protocol, TypeVar

from .arguments import ArgumentsInfo
from .asked import AskedInfo
from .calls import CFG_LAYOUTS, CallInfo, Run, in_batch, runs_of
from .consistency import check_manifest
from .curve import CurveInfo
from .decoder import DecoderInfo
from .dynamic import DynamicInfo
from .engine_info import EngineInfo
from .entries import MAX_STEPS, BucketInfo, FileInfo, InputInfo, ModelInfo, OutputInfo, SlotInfo
from .errors import BundleError
from .fields import (
    JsonValue,
    canonical_json,
    digest_of,
    load_json,
    read_choice,
    read_counts,
    read_flag,
    read_integer,
    read_list,
    read_mapping,
    read_name,
    read_object,
    read_sha256,
    read_string,
)
from .files import CONDITIONING_FILE, MANIFEST_FILE, PLAN_FILE, WEIGHTS_FILE, check_relative
from .prologue import Graph, PartInfo, PrologueInfo
from .sampler import SamplerTable
from .versions import FORMAT, VERSION, read_version

__all__ = [
    "CONDITIONING_FILE",
    "FORMAT",
    "MANIFEST_FILE",
    "PLAN_FILE",
    "VERSION",
    "WEIGHTS_FILE",
    "AskedInfo",
    "BucketInfo",
    "CurveInfo",
    "DecoderInfo",
    "DynamicInfo",
    "EngineInfo",
    "FileInfo",
    "Graph",
    "InputInfo",
    "Manifest",
    "ModelInfo",
    "OutputInfo",
    "PartInfo",
    "PrologueInfo",
    "SlotInfo",
    "read_version",
]

T = TypeVar("T")

OPTIONAL = ("arguments", "asked", "calls", "decoder", "engine", "rows")
"""Fields that are written only where there is something to say."""


@dataclass(frozen=True)
class Manifest:
    """All that a runtime must know of a bundle before it opens any other file.

    Attributes:
        ditc: the version of ditc that wrote it.
        target: what the buckets were lowered to, as "onnx".
        precision: as "fp32".
        model: what was compiled.
        cfg: "cond-first" or "uncond-first" where the batch holds both halves of classifier-free
            guidance, "separate" or "separate-uncond-first" where each has a call of its own, None
            without guidance.
        steps: how many steps there are, T.
        inputs: the program's inputs.
        outputs: the program's outputs; the first is what the sampler takes.
        slots: the buffers between steps.
        buckets: the graphs; each step is in exactly one, or in one for each of its calls.
        sampler: the sampler's coefficients; None where the caller has its own loop.
        files: every file but the manifest, by path with forward slashes.
        weights_sha256: of the checkpoint that took the place of the weights the bundle was
            compiled with, and the plan found on; None where they are still there.
        curve: what each limit on buckets would have cost; None where none was asked for.
        prologue: what runs before the steps; None where nothing does.
        calls: what each call of a step runs, in order; empty where a step is one call.
        arguments: how the denoiser's own arguments become the inputs; None where nobody said.
        engine: what built the buckets' engines; None where they are ONNX graphs.
        dynamic: the batch sizes its graphs serve; None where they serve the captured one alone.
        variant: name of the variant it is, where a folder holds several; its files begin with it.
        equal_halves: whether latents and timestep have to be the same in both halves.
        decoder: of latents into pictures; None where there is none.
        asked: what the schedule was made for; None where no steps were merged.
        rows: of the table that an input's integers pick rows of, as class labels do, by input.

    Raises:
        BundleError: if the fields contradict each other; the message names the field.
    """

    ditc: str
    target: str
    precision: str
    model: ModelInfo
    cfg: str | None
    steps: int
    inputs: tuple[InputInfo, ...]
    outputs: tuple[OutputInfo, ...]
    slots: tuple[SlotInfo, ...]
    buckets: tuple[BucketInfo, ...]
    sampler: SamplerTable | None
    files: Mapping[str, FileInfo]
    weights_sha256: str | None = None
    curve: CurveInfo | None = None
    prologue: PrologueInfo | None = None
    calls: tuple[CallInfo, ...] = ()
    arguments: ArgumentsInfo | None = None
    engine: EngineInfo | None = None
    dynamic: DynamicInfo | None = None
    variant: str | None = None
    equal_halves: bool = False
    decoder: DecoderInfo | None = None
    asked: AskedInfo | None = None
    rows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_manifest(self)

    @property
    def title(self) -> str:
        """What it computes, of which inputs, and in how many graphs, as one line."""
        inputs = ", ".join(f"{info.name} {list(info.shape)}" for info in self.inputs)
        return (
            f"{self.model.class_name}: {inputs}; {self.steps} steps in {len(self.buckets)} "
            f"buckets, {self.target} {self.precision}, cfg {self.cfg!r}"
        )

    def file(self, name: str) -> str:
        """Return the name of a file that each variant has of its own."""
        return name if self.variant is None else f"{self.variant}.{name}"

    def bucket_of(self, step: int) -> BucketInfo:
        """Return the bucket that runs `step`, one of 0 to T-1; of its first call if it has two."""
        name = next(run.bucket for run in self.runs if run.step == step)
        return next(bucket for bucket in self.buckets if bucket.name == name)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All runs of a generation in order: one a step, or one for each call of it."""
        return runs_of(self.cfg, self.steps, self.buckets, self.calls)

    def slots_of(self, bucket: str) -> dict[str, SlotInfo]:
        """Return the slots of a graph's first run, if it uses any, by the names it has for them."""
        known = {slot.name: slot for slot in self.slots}
        used = next((run.slots for run in self.runs if run.bucket == bucket), {})
        return {name: known[slot] for name, slot in used.items()}

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """All graphs: the buckets, and those that run before the steps."""
        return (*self.buckets, *(self.prologue.parts if self.prologue else ()))

    def outputs_of(self, graph: Graph) -> tuple[OutputInfo, ...]:
        """Return what a graph gives besides slots."""
        return graph.outputs if isinstance(graph, PartInfo) else self.outputs

    @property
    def output_cfg(self) -> str | None:
        """The layout of the outputs' halves; None where the program guides them itself."""
        return None if self.input_of("guidance") else self.cfg

    @property
    def storages(self) -> dict[str, int]:
        """The number of each slot's storage, by the slot's name."""
        return {slot.name: slot.storage for slot in self.slots}

    @property
    def storage_bytes(self) -> dict[int, int]:
        """Bytes of each storage: those of its largest slot."""
        found: dict[int, int] = {}
        for slot in self.slots:
            found[slot.storage] = max(found.get(slot.storage, 0), slot.nbytes)
        return found

    @property
    def samples(self) -> int:
        """The samples that shapes are of, 0 without latents: half the batch under guidance."""
        latents = self.input_of("latents")
        if latents is None or not latents.shape:
            return 0
        return latents.shape[0] // 2 if in_batch(self.cfg) else latents.shape[0]

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the most samples that the bundle serves."""
        if self.dynamic is None:
            return self.samples, self.samples
        return self.dynamic.least, self.dynamic.most

    def input_of(self, role: str) -> InputInfo | None:
        """Return the first input of a role, or None where there is none."""
        return next((info for info in self.inputs if info.role == role), None)

    def to_json(self) -> str:
        """Return the canonical JSON text, with the digest in it; equal manifests, equal text."""
        body = self._body()
        return canonical_json({**body, "digest": digest_of(body)})

    def _body(self) -> dict[str, JsonValue]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "ditc": self.ditc,
            "target": self.target,
            "precision": self.precision,
            "model": self.model.to_json(),
            "cfg": self.cfg,
            "steps": self.steps,
            "inputs": [info.to_json() for info in self.inputs],
            "outputs": [info.to_json() for info in self.outputs],
            "slots": [info.to_json() for info in self.slots],
            "buckets": [info.to_json() for info in self.buckets],
            "sampler": _json(self.sampler),
            "files": {path: info.to_json() for path, info in self.files.items()},
            "weights_sha256": self.weights_sha256,
            "curve": _json(self.curve),
            "equal_halves": self.equal_halves,
            "prologue": _json(self.prologue),
            "dynamic": _json(self.dynamic),
            "variant": self.variant,
            **self._optional(),
        }

    def _optional(self) -> dict[str, JsonValue]:
        records: dict[str, JsonValue] = {
            "arguments": _json(self.arguments),
            "asked": _json(self.asked),
            "calls": [*(call.to_json() for call in self.calls)] or None,
            "decoder": _json(self.decoder),
            "engine": _json(self.engine),
            "rows": dict(self.rows) or None,
        }
        return {name: record for name, record in records.items() if record is not None}

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the manifest that `to_json` wrote.

        Raises:
            BundleError: if the text is anything else: another format, a newer version, changed
                since it was written, or at odds with itself. The message names the field.
        """
        value = read_version(load_json(text, MANIFEST_FILE))
        given = {entry.name for entry in fields(cls)} - (set(OPTIONAL) - set(value))
        names = [entry.name for entry in fields(cls) if entry.name in given]
        found = read_object(value, MANIFEST_FILE, ["format", "version", "digest", *names])
        body = {key: item for key, item in value.items() if key != "digest"}
        if found["digest"] != digest_of(body):
            raise BundleError(
                f"{MANIFEST_FILE}: the digest is {found['digest']!r}, expected {digest_of(body)!r}"
                " from its content; it was changed, copy or compile the bundle again"
            )
        files = read_mapping(found["files"], "files")
        return cls(
            ditc=read_string(found["ditc"], "ditc"),
            target=read_name(found["target"], "target"),
            precision=read_name(found["precision"], "precision"),
            model=ModelInfo.from_json(found["model"], "model"),
            cfg=read_choice(found["cfg"], "cfg", CFG_LAYOUTS),
            steps=read_integer(found["steps"], "steps", 1, MAX_STEPS),
            inputs=read_list(found["inputs"], "inputs", InputInfo.from_json),
            outputs=read_list(found["outputs"], "outputs", OutputInfo.from_json),
            slots=read_list(found["slots"], "slots", SlotInfo.from_json),
            buckets=read_list(found["buckets"], "buckets", BucketInfo.from_json),
            sampler=_read(SamplerTable.from_json, found, "sampler"),
            files={
                check_relative(path, "files"): FileInfo.from_json(info, f"files.{path}")
                for path, info in files.items()
            },
            weights_sha256=_read(read_sha256, found, "weights_sha256"),
            curve=_read(CurveInfo.from_json, found, "curve"),
            equal_halves=read_flag(found["equal_halves"], "equal_halves"),
            prologue=_read(PrologueInfo.from_json, found, "prologue"),
            calls=read_list(found.get("calls", []), "calls", CallInfo.from_json),
            arguments=_read(ArgumentsInfo.from_json, found, "arguments"),
            engine=_read(EngineInfo.from_json, found, "engine"),
            dynamic=_read(DynamicInfo.from_json, found, "dynamic"),
            variant=_read(read_name, found, "variant"),
            decoder=_read(DecoderInfo.from_json, found, "decoder"),
            asked=_read(AskedInfo.from_json, found, "asked"),
            rows=read_counts(found.get("rows", {}), "rows"),
        )


class _Record(Protocol):
    def to_json(self) -> dict[str, JsonValue]: ...


def _json(record: _Record | None) -> JsonValue:
    return None if record is None else record.to_json()


def _read(read: Callable[[object, str], T], found: Mapping[str, object], name: str) -> T | None:
    """Return a field that may be absent or null."""
    return None if found.get(name) is None else read(found[name], name)
