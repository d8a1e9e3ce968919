"""What runs before the steps: its graphs, and the values they leave for the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from .sizes import nbytes

__all__ = ["Feed", "Part", "Prologue", "Value"]


@dataclass(frozen=True)
class Value:
    """A tensor that a prologue leaves for the steps, named as the node that made it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes it takes, for one step."""
        return nbytes(self.shape, self.dtype)


@dataclass(frozen=True, eq=False)
class Part:
    """A graph that was taken out of a program.

    Attributes:
        graph_module: placeholders are `inputs`, outputs the tensors of `values`, in order.
        inputs: the program's inputs that it takes, and the other part's values, by name.
        values: what it leaves.
        multiply_adds: of one run.
    """

    graph_module: fx.GraphModule
    inputs: tuple[str, ...]
    values: tuple[Value, ...]
    multiply_adds: int


@dataclass(frozen=True, eq=False)
class Prologue:
    """What a program computes before its steps.

    Attributes:
        prompt: depends on conditioning alone, so that it runs once for a prompt; None if nothing
            does.
        step: depends on the timestep as well but not on the latents; one run serves one step.
        steps: how many steps its values are stored for.
        weight_bytes: of the weights that no step reads any more.
        multiply_adds: that no step computes any more.
    """

    prompt: Part | None
    step: Part | None
    steps: int
    weight_bytes: int
    multiply_adds: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts there are, in the order in which they run."""
        return tuple(part for part in (self.prompt, self.step) if part is not None)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all that is kept: values of the prompt, and those of every step."""
        prompt = sum(value.nbytes for value in self.prompt.values) if self.prompt else 0
        step = sum(value.nbytes for value in self.step.values) if self.step else 0
        return prompt + self.steps * step


class Feed:
    """Makes what a program's graph takes: runs the prologue, the prompt's part when it has to.

    Args:
        prologue: of the program, if it has one.
        inputs: names of the program's inputs, in order.
        arguments: names of what its graph takes, in order.
    """

    def __init__(
        self, prologue: Prologue | None, inputs: Sequence[str], arguments: Sequence[str]
    ) -> None:
        self._prologue = prologue
        self._inputs = inputs
        self._arguments = arguments
        self._given: dict[str, torch.Tensor] = {}
        self._prompt: dict[str, torch.Tensor] = {}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors that the graph takes, in order, from those of the inputs."""
        named = dict(zip(self._inputs, inputs, strict=True))
        if self._prologue is not None:
            with torch.no_grad():
                named |= self._prompt_values(self._prologue.prompt, named)
                named |= _run(self._prologue.step, named)
        return [named[name] for name in self._arguments]

    def _prompt_values(
        self, part: Part | None, named: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the prompt's values, computed anew if they are made from something else now."""
        given = {name: named[name] for name in part.inputs} if part else {}
        known = self._given.keys() == given.keys() and self._prompt
        if not known or not all(torch.equal(self._given[name], given[name]) for name in given):
            self._given = {name: value.clone() for name, value in given.items()}
            self._prompt = _run(part, given)
        return self._prompt


def _run(part: Part | None, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if part is None:
        return {}
    made = part.graph_module(*(named[name] for name in part.inputs))
    return {value.name: tensor for value, tensor in zip(part.values, made, strict=True)}
