"""A graph that was lowered: ONNX without a weight in it, and where its weights come from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from ditc.passes.graphs import weight
from ditc.passes.program import Program
from ditc.runtime.errors import LoweringError

from .tensors import raw_bytes

__all__ = ["Lowered", "Source", "pack", "unpack"]

GRAPH = "graph"
CONSTANT = "constant:"


@dataclass(frozen=True)
class Source:
    """Where a stored weight comes from: a tensor of the program, as it is or changed.

    Attributes:
        target: name of the tensor in the program.
        transposed: whether its two axes are exchanged.
        dtype: torch's name of the dtype it is cast to, None to leave it as the program has it.
    """

    target: str
    transposed: bool
    dtype: str | None = None

    def like(self, program: Program) -> torch.Tensor:
        """Return a tensor without values, on the meta device, as the stored one."""
        held = weight(program.graph_module, self.target)
        return self.changed(torch.empty(held.shape, dtype=held.dtype, device="meta"))

    def tensor(self, program: Program) -> torch.Tensor:
        """Return the stored tensor of a program: a view of its own, or read from where it lies.

        Raises:
            DitcError: if it can't be read.
        """
        held = weight(program.graph_module, self.target).detach()
        if not held.is_meta:
            return self.changed(held)
        if program.weights is None:
            raise LoweringError(
                f"weight {self.target} isn't loaded, and the program doesn't say where it lies: "
                "capture with weights="
            )
        read = program.weights.tensor(self.target)
        if read.shape != held.shape:
            raise LoweringError(
                f"weight {self.target} is {list(read.shape)} where it lies, the program has "
                f"{list(held.shape)}"
            )
        return self.changed(_as(read, held.dtype, self.dtype))

    def changed(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the program as it is stored."""
        if self.dtype is not None:
            value = value.to(getattr(torch, self.dtype))
        return value.t() if self.transposed else value


def _as(read: torch.Tensor, held: torch.dtype, wanted: str | None) -> torch.Tensor:
    """Return a tensor as the program has it, unless it is cast back to what it is right after."""
    back = wanted is not None and getattr(torch, wanted) == read.dtype
    if back and torch.promote_types(read.dtype, held) == held:
        return read
    return read.to(held)


@dataclass(frozen=True, eq=False)
class Lowered:
    """An ONNX graph, told apart from weights' values.

    Attributes:
        graph: serialised model. Larger initializers are external, at no place yet.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        weights: where each weight it refers to comes from, by the name it has in the store.
        constants: other tensors it refers to, named after their content.
        multiply_adds: of one run.
        axes: of inputs and outputs by name the axis that holds the batch, where the graph serves
            several; else empty.
    """

    graph: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Source]
    constants: Mapping[str, torch.Tensor]
    multiply_adds: int
    axes: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the store that the graph refers to, sorted."""
        return tuple(sorted({*self.weights, *self.constants}))


def pack(lowered: Lowered) -> bytes:
    """Return a lowered graph as one safetensors file that holds its own digest."""
    tensors = {
        GRAPH: torch.frombuffer(bytearray(lowered.graph), dtype=torch.uint8),
        **{CONSTANT + name: value.contiguous() for name, value in lowered.constants.items()},
    }
    record = json.dumps(
        {
            "inputs": lowered.inputs,
            "outputs": lowered.outputs,
            "weights": {name: asdict(source) for name, source in sorted(lowered.weights.items())},
            "multiply_adds": lowered.multiply_adds,
            "axes": dict(lowered.axes),
        },
        sort_keys=True,
    )
    packed: bytes = save(tensors, {"record": record, "sha256": _digest(tensors, record)})
    return packed


def unpack(raw: bytes, path: str) -> Lowered | None:
    """Return what `pack` wrote, None if it is damaged.

    Args:
        raw: the file's content.
        path: the file, whose header is read from there.
    """
    try:
        tensors = load(raw)
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        record = meta["record"]
        if meta["sha256"] != _digest(tensors, record):
            return None
        found = json.loads(record)
        return Lowered(
            graph=tensors[GRAPH].numpy().tobytes(),
            inputs=tuple(found["inputs"]),
            outputs=tuple(found["outputs"]),
            weights={name: Source(**source) for name, source in found["weights"].items()},
            constants={
                name.removeprefix(CONSTANT): value
                for name, value in tensors.items()
                if name.startswith(CONSTANT)
            },
            multiply_adds=found["multiply_adds"],
            axes=found["axes"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _digest(tensors: Mapping[str, torch.Tensor], record: str) -> str:
    found = hashlib.sha256(record.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(raw_bytes(value))
    return found.hexdigest()
