"""A graph that was lowered: ONNX without a weight in it, and where its weights come from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from ditc.passes.graphs import weight
from ditc.passes.program import Program

__all__ = ["Lowered", "Source", "pack", "unpack"]

GRAPH = "graph"
CONSTANT = "constant:"


@dataclass(frozen=True)
class Source:
    """Where a stored weight comes from: a tensor of the program, as it is or transposed."""

    target: str
    transposed: bool

    def tensor(self, program: Program) -> torch.Tensor:
        """Return the stored tensor of a program; a view of the program's own."""
        value = weight(program.graph_module, self.target).detach()
        return value.t() if self.transposed else value


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
    """

    graph: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Source]
    constants: Mapping[str, torch.Tensor]
    multiply_adds: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the store that the graph refers to, sorted."""
        return tuple(sorted({*self.weights, *self.constants}))

    def tensors(self, program: Program) -> dict[str, torch.Tensor]:
        """Return what the graph refers to, by name, of the program it was made from."""
        return {
            **{name: source.tensor(program) for name, source in self.weights.items()},
            **self.constants,
        }


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
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _digest(tensors: Mapping[str, torch.Tensor], record: str) -> str:
    found = hashlib.sha256(record.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()
