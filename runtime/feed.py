"""Give buckets what they take: run the prologue for a prompt, and for all steps at once."""

from collections.abc import Mapping

import numpy as np

from .engine import Array, Engine
from .manifest import Manifest
from .prologue import PartInfo, PrologueInfo

__all__ = ["Feed"]


class Feed:
    """The values of a bundle's prologue, made anew when what they are made from changes.

    A step's values come from one run for all steps, where the timesteps of all are known: from
    the sampler's table, or from steps that were run before. A step that comes with another
    timestep gets a run of its own.

    Attributes:
        runs: how often each graph of the prologue was run, by its name.
    """

    def __init__(self, manifest: Manifest, engines: Mapping[str, Engine]) -> None:
        self._prologue = manifest.prologue
        self._engines = engines
        self._given: dict[str, Array] = {}
        self._prompt: dict[str, Array] = {}
        self._all_steps: dict[str, Array] = {}
        timestep = manifest.input_of("timestep")
        self._timestep = None if timestep is None else timestep.name
        self._told: list[Array | None] = [None] * manifest.steps
        if manifest.sampler is not None and timestep is not None:
            self._told = [
                np.full(timestep.shape, time, timestep.dtype) for time in manifest.sampler.timesteps
            ]
        self.runs: dict[str, int] = {}

    def __call__(
        self, k: int, arrays: Mapping[str, Array], *, same_prompt: bool = False
    ) -> dict[str, Array]:
        """Return the program's inputs and the prologue's values by name.

        Args:
            k: the step.
            arrays: the program's inputs by name.
            same_prompt: whether conditioning is known to be that of the call before.
        """
        if self._prologue is None:
            return dict(arrays)
        if not same_prompt:
            self._see(self._prologue, arrays)
        named = {**arrays, **self._prompt}
        return {**named, **self._step_values(self._prologue, k, named)}

    def forget(self) -> None:
        """Have all of the prologue run again, with the timesteps that are known."""
        self._given, self._prompt, self._all_steps = {}, {}, {}

    def _see(self, prologue: PrologueInfo, arrays: Mapping[str, Array]) -> None:
        """Run the prompt's part if conditioning isn't what it was."""
        names = {
            name
            for part in prologue.parts
            for name in part.inputs
            if name in arrays and name != self._timestep
        }
        given = {name: arrays[name] for name in sorted(names)}
        made = self._given.keys() == given.keys() and (self._prompt or prologue.prompt is None)
        if made and all(np.array_equal(given[name], self._given[name]) for name in given):
            return
        self._given = {}
        self._all_steps = {}
        if prologue.prompt is not None:
            self._prompt = self._run(prologue.prompt, arrays)
        self._given = {name: array.copy() for name, array in given.items()}

    def _step_values(
        self, prologue: PrologueInfo, k: int, named: Mapping[str, Array]
    ) -> dict[str, Array]:
        if prologue.step is None or self._timestep is None:
            return {}
        given, expected = named[self._timestep], self._told[k]
        if expected is None or not np.array_equal(given, expected):
            self._told[k] = given.copy()
            self._all_steps = {}
            return self._run(prologue.step, named)
        told = [array for array in self._told if array is not None]
        if prologue.all_steps is None or len(told) < len(self._told):
            return self._run(prologue.step, named)
        if not self._all_steps:
            stacked = {**named, self._timestep: np.stack(told)}
            self._all_steps = self._run(prologue.all_steps, stacked)
        return {name: array[k] for name, array in self._all_steps.items()}

    def _run(self, part: PartInfo, arrays: Mapping[str, Array]) -> dict[str, Array]:
        self.runs[part.name] = self.runs.get(part.name, 0) + 1
        return self._engines[part.name].run({name: arrays[name] for name in part.inputs})
