"""What a manifest says of the graphs that run before the steps."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from .dynamic import Scale
from .entries import MAX_COUNT, BucketInfo, OutputInfo
from .fields import (
    JsonValue,
    read_integer,
    read_list,
    read_name,
    read_names,
    read_object,
)
from .files import check_relative

__all__ = ["Graph", "PartInfo", "PrologueInfo"]

FIELDS = ("name", "graph", "inputs", "outputs", "multiply_adds", "weights")


@dataclass(frozen=True)
class PartInfo:
    """A graph that runs before the steps.

    Attributes:
        name: unique among the bundle's graphs.
        graph: the graph's path in the bundle, with forward slashes.
        inputs: the program inputs and the prompt's values it takes.
        outputs: the values it leaves, named as the inputs of buckets that take them.
        multiply_adds: of one run.
        weights: the tensors of the weight store its graph uses, by their names there.
    """

    name: str
    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[OutputInfo, ...]
    multiply_adds: int
    weights: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """Slots it takes: none."""
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        """Slots it gives: none."""
        return ()

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "name": self.name,
            "graph": self.graph,
            "inputs": list(self.inputs),
            "outputs": [info.to_json() for info in self.outputs],
            "multiply_adds": self.multiply_adds,
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "PartInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, FIELDS)
        return cls(
            name=read_name(found["name"], f"{where}.name"),
            graph=check_relative(read_name(found["graph"], f"{where}.graph"), f"{where}.graph"),
            inputs=read_names(found["inputs"], f"{where}.inputs"),
            outputs=read_list(found["outputs"], f"{where}.outputs", OutputInfo.from_json),
            multiply_adds=read_integer(
                found["multiply_adds"], f"{where}.multiply_adds", 0, MAX_COUNT
            ),
            weights=read_names(found["weights"], f"{where}.weights"),
        )


Graph: TypeAlias = BucketInfo | PartInfo
"""A graph of a bundle: one that steps run, or one that runs before them."""


@dataclass(frozen=True)
class PrologueInfo:
    """What runs before the steps, and what the steps are spared.

    Attributes:
        prompt: runs once for a prompt; None if nothing depends on conditioning alone.
        step: runs once for a step that comes with a timestep of its own.
        all_steps: the same for all steps at once: its values are `[T, ...]`.
        weight_bytes: of the weights that no bucket reads.
        multiply_adds: that no step computes.
    """

    prompt: PartInfo | None
    step: PartInfo | None
    all_steps: PartInfo | None
    weight_bytes: int
    multiply_adds: int

    @property
    def parts(self) -> tuple[PartInfo, ...]:
        """The graphs there are."""
        parts = (self.prompt, self.step, self.all_steps)
        return tuple(part for part in parts if part is not None)

    @property
    def values(self) -> tuple[OutputInfo, ...]:
        """What buckets are given, as one step sees it."""
        parts = (self.prompt, self.step)
        return tuple(info for part in parts if part is not None for info in part.outputs)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the values that are kept over the steps."""
        last = self.all_steps or self.step
        parts = (self.prompt, last)
        return sum(info.nbytes for part in parts if part is not None for info in part.outputs)

    def scaled(self, scale: Scale) -> "PrologueInfo":
        """Return the record at another number of samples."""

        def part(info: PartInfo | None, in_front: int) -> PartInfo | None:
            if info is None:
                return None
            outputs = tuple(scale.entry(entry, in_front) for entry in info.outputs)
            return replace(info, outputs=outputs)

        return replace(
            self,
            prompt=part(self.prompt, 0),
            step=part(self.step, 0),
            all_steps=part(self.all_steps, 1),
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "prompt": None if self.prompt is None else self.prompt.to_json(),
            "step": None if self.step is None else self.step.to_json(),
            "all_steps": None if self.all_steps is None else self.all_steps.to_json(),
            "weight_bytes": self.weight_bytes,
            "multiply_adds": self.multiply_adds,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "PrologueInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        names = ("prompt", "step", "all_steps")
        found = read_object(value, where, (*names, "weight_bytes", "multiply_adds"))
        prompt, step, all_steps = (
            None if found[name] is None else PartInfo.from_json(found[name], f"{where}.{name}")
            for name in names
        )
        counts = (
            read_integer(found[name], f"{where}.{name}", 0, MAX_COUNT)
            for name in ("weight_bytes", "multiply_adds")
        )
        return cls(prompt, step, all_steps, *counts)
