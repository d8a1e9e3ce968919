"""An engine that computes nothing, so that all around it is tested without an inference engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .dtypes import array_dtype
from .engine import Array
from .manifest import Manifest, OutputInfo

__all__ = ["NullBackend", "NullEngine"]


@dataclass
class NullBackend:
    """Loads engines that return zeros.

    Attributes:
        calls: the bucket's name and the inputs of every run, oldest first.
    """

    calls: list[tuple[str, dict[str, Array]]] = field(default_factory=list)

    def load(
        self, root: Path, manifest: Manifest, weights: Mapping[str, Array]
    ) -> dict[str, "NullEngine"]:
        """Return an engine a graph; all of them note their runs in `calls`."""
        del root, weights
        return {
            graph.name: NullEngine(graph.name, manifest.outputs_of(graph), self)
            for graph in manifest.graphs
        }


@dataclass
class NullEngine:
    """Returns zeros of the outputs' shapes and dtypes."""

    bucket: str
    outputs: tuple[OutputInfo, ...]
    backend: NullBackend

    def bound(self, slots: Mapping[str, str]) -> "NullEngine":
        """Return itself: it has no slots."""
        del slots
        return self

    def resize(self, sized: Manifest) -> None:
        """Return zeros of other shapes; see `Resizable.resize`."""
        graph = next(graph for graph in sized.graphs if graph.name == self.bucket)
        self.outputs = sized.outputs_of(graph)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Note the inputs and return zeros."""
        self.backend.calls.append((self.bucket, {name: a.copy() for name, a in arrays.items()}))
        return {info.name: np.zeros(info.shape, array_dtype(info.dtype)) for info in self.outputs}
