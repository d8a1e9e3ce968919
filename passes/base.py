"""Passes over a graph, and the runner that verifies what each leaves."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ditc.runtime.errors import PassError

from .verify import verify

__all__ = ["Pass", "run"]


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite; a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    @abstractmethod
    def rewrite(self, graph: fx.Graph) -> int:
        """Change the graph in place and return how many sites or nodes were changed."""


def run(passes: Iterable[Pass], module: fx.GraphModule) -> dict[str, int]:
    """Run passes in order over a module's graph; verify after each, recompile at the end.

    Returns:
        How much each pass changed, by its name.

    Raises:
        PassError: naming the pass, if it fails or leaves a graph that doesn't verify.
    """
    changed: dict[str, int] = {}
    for stage in passes:
        try:
            changed[stage.name] = changed.get(stage.name, 0) + stage.rewrite(module.graph)
            verify(module)
        except PassError as error:
            raise PassError(f"pass {stage.name}: {error}") from error
    module.recompile()
    return changed
