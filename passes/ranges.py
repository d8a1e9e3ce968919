"""Calibrate for fp16: run a program in full width and see what a half can't hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from .graphs import module_path
from .program import Program, Site

__all__ = ["LARGEST_HALF", "Overflow", "overflows", "unavoidable"]

LARGEST_HALF = 65504.0
"""The largest finite number of float16."""
MARGIN = 2.0
"""How much larger values may become at other samples and steps than at those looked at."""


@dataclass(frozen=True)
class Overflow:
    """A value that float16 can't hold, or not for sure.

    Attributes:
        node: name of the node that makes it.
        module: path of the module it was traced in, empty if unknown.
        operator: that makes it.
        largest: largest magnitude that was seen.
    """

    node: str
    module: str
    operator: str
    largest: float

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.node} ({self.operator}{where}) reaches {self.largest:.3g}"


def overflows(
    program: Program, samples: Iterable[Mapping[str, torch.Tensor]], limit: float | None = None
) -> tuple[Overflow, ...]:
    """Return the values that float16 can't hold, in the order in which they are computed.

    Args:
        program: in float32, its weights loaded.
        samples: inputs to run it on, by input name.
        limit: magnitude above which a value counts, half of what float16 holds if None.

    Raises:
        CaptureError: if the program's weights aren't loaded.
    """
    program.check_loaded()
    bound = LARGEST_HALF / MARGIN if limit is None else limit
    watch = _Watch(program.graph_module)
    for sample in samples:
        with torch.no_grad():
            watch.run(*(sample[entry.name] for entry in program.inputs))
    return tuple(
        Overflow(node.name, module_path(node), str(node.target), largest)
        for node, largest in watch.largest.items()
        if largest > bound
    )


def unavoidable(found: Sequence[Overflow], sites: Iterable[Site]) -> tuple[Overflow, ...]:
    """Return those that nothing helps: queries, keys and values have to be halves."""
    operands = {name for site in sites for name in (site.query, site.key, site.value)}
    return tuple(entry for entry in found if entry.node in operands)


class _Watch(fx.Interpreter):
    """Notes the largest magnitude of every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.largest: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and _is_single(value):
            finite = value[value.abs() < torch.finfo(torch.float32).max / 2]  # masks' own numbers
            most = float(finite.abs().max()) if finite.numel() else 0.0
            self.largest[n] = max(self.largest.get(n, 0.0), most)
        return value


def _is_single(value: torch.Tensor) -> bool:
    return value.dtype is torch.float32 and value.numel() > 0
