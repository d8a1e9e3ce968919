"""A graph that was lowered: ONNX without a weight in it, and where its weights come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ditc.passes.graphs import weight
from ditc.passes.program import Program
from ditc.runtime.errors import LoweringError

from .sealed import bytes_of, seal, tensor_of, unseal

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
    """Return a lowered graph as a file's content."""
    tensors = {
        GRAPH: tensor_of(lowered.graph),
        **{CONSTANT + name: value.contiguous() for name, value in lowered.constants.items()},
    }
    record = {
        "inputs": lowered.inputs,
        "outputs": lowered.outputs,
        "weights": {name: asdict(source) for name, source in lowered.weights.items()},
        "multiply_adds": lowered.multiply_adds,
        "axes": dict(lowered.axes),
    }
    return seal(tensors, record)


def unpack(raw: bytes, path: str) -> Lowered | None:
    """Return what `pack` wrote, None if it is damaged; arguments as of `unseal`."""
    return unseal(raw, path, _read)


def _read(tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> Lowered:
    return Lowered(
        graph=bytes_of(tensors.pop(GRAPH)),
        inputs=tuple(record["inputs"]),
        outputs=tuple(record["outputs"]),
        weights={name: Source(**source) for name, source in record["weights"].items()},
        constants={name.removeprefix(CONSTANT): value for name, value in tensors.items()},
        multiply_adds=record["multiply_adds"],
        axes=record["axes"],
    )
