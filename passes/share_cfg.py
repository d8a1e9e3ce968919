"""Share a site across CFG: x → site → y   becomes   conditional half of x → site → y, y."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .base import Pass
from .batch_rules import FILLED
from .graphs import BATCH_AXIS, SLOT, call, infer
from .halving import BatchAxes, batch_axes
from .program import CfgLayout, Site
from .sites import region

__all__ = ["ShareCfg"]

aten = torch.ops.aten
HALF = "ditc.half"
"""Key of `Node.meta` that marks a slice as the conditional half."""


@dataclass(frozen=True)
class ShareCfg(Pass):
    """Compute each `asc` site on the conditional half alone; its output serves both halves.

    Everything batched that enters the site is sliced, a residual looked up among it; whatever
    leaves it, slot writes among it, is repeated for both halves.

    Attributes:
        sites: those whose method is `asc` or `wa-rs+asc`.
        cfg: order of the halves.
        batch: size of the first axis of inputs that hold both halves.
    """

    name: ClassVar[str] = "share-cfg"
    sites: tuple[Site, ...]
    cfg: CfgLayout
    batch: int

    def rewrite(self, graph: fx.Graph) -> int:
        """Halve sites and return how many."""
        layout = _Layout(graph, self.batch)
        return sum(self._halve(graph, site, layout) for site in self.sites)

    def _halve(self, graph: fx.Graph, site: Site, layout: "_Layout") -> int:
        inside = region(graph, site.projections, site.exits)
        members = set(inside)
        sources = dict.fromkeys(
            arg for node in inside for arg in node.all_input_nodes if arg not in members
        )
        if not inside or any(source.meta.get(HALF) for source in sources):
            return 0
        batched = [source for source in sources if layout.has_halves(site, source)]
        halves = {source: self._conditional(graph, source) for source in batched}
        axes = BatchAxes(tuple(halves.values()))
        for node in inside:
            for entry, half in halves.items():
                node.replace_input_with(entry, half)
            axes.halve(node)
        infer(inside)
        for node in inside:
            outside = [user for user in node.users if user not in members]
            if not outside:
                continue
            if axes.axis.get(node) != 0:
                raise PassError(
                    f"site {site.name}: {node.name} doesn't hold the halves on its first axis: "
                    "use a method without asc there"
                )
            layout.add(_repeat(graph, node, outside))
        return 1

    def _conditional(self, graph: fx.Graph, entry: fx.Node) -> fx.Node:
        """Slice the conditional half off a value; a merged first axis has the batch outermost."""
        size = entry.meta["val"].shape[0]
        start, stop = (0, size // 2) if self.cfg == "cond-first" else (size // 2, size)
        with graph.inserting_before(_first_computed_after(graph, entry)):
            half = call(graph, aten.slice.Tensor, entry, 0, start, stop)
        half.meta[HALF] = True
        return half


def _repeat(graph: fx.Graph, node: fx.Node, users: list[fx.Node]) -> fx.Node:
    with graph.inserting_after(node):
        both = call(graph, aten.cat.default, [node, node])
    for user in users:
        user.replace_input_with(node, both)
    return both


def _first_computed_after(graph: fx.Graph, entry: fx.Node) -> fx.Node:
    """Return the node to insert before: behind the entry and behind all inputs."""
    if entry.op == "call_function":
        return entry.next
    computed: fx.Node = next(node for node in graph.nodes if node.op == "call_function")
    return computed


class _Layout:
    """Where the values of a graph hold the batch, as they were before any site was halved."""

    def __init__(self, graph: fx.Graph, batch: int) -> None:
        self._batch = batch
        inputs = [node for node in graph.find_nodes(op="placeholder") if _is_batched(node, batch)]
        self._axes = batch_axes(graph, inputs, batch)
        self._constants = {*_unread_biases(graph), *_expanded(graph), *_filled(graph)}
        self._dependent = {*inputs, *_made_before(graph)}
        for node in graph.nodes:
            takes = any(arg in self._dependent for arg in node.all_input_nodes)
            if takes and node.target not in FILLED:
                self._dependent.add(node)

    def add(self, node: fx.Node) -> None:
        """Note a new value that holds both halves on its first axis."""
        self._axes[node] = 0
        self._dependent.add(node)

    def has_halves(self, site: Site, source: fx.Node) -> bool:
        """Return whether what enters a site holds both halves on its first axis.

        Raises:
            PassError: if it holds them elsewhere, or where can't be seen.
        """
        if source not in self._dependent:
            return source in self._constants and _splits(source, self._batch)
        axis = self._axes.get(source)
        if axis is None and not _splits(source, self._batch):
            return False
        if axis != 0:
            raise PassError(
                f"site {site.name}: {source.name} doesn't hold the halves outermost on its first "
                "axis: use a method without asc there"
            )
        return True


def _made_before(graph: fx.Graph) -> list[fx.Node]:
    """Return the inputs that a prologue made from batched ones."""
    inputs = graph.find_nodes(op="placeholder")
    return [node for node in inputs if node.meta.get(BATCH_AXIS) is not None]


def _is_batched(node: fx.Node, batch: int) -> bool:
    if BATCH_AXIS in node.meta:
        return False
    shape = node.meta["val"].shape
    return SLOT in node.meta or (len(shape) > 0 and shape[0] == batch)


def _unread_biases(graph: fx.Graph) -> set[fx.Node]:
    """Return the empty tensors that `baddbmm` with beta 0 is given; their shape still counts."""
    products = [node for node in graph.nodes if node.target is aten.baddbmm.default]
    return {node.all_input_nodes[0] for node in products if node.kwargs.get("beta") == 0}


def _expanded(graph: fx.Graph) -> list[fx.Node]:
    """Return values expanded along their first axis: its entries are equal, so are its halves."""
    nodes = graph.find_nodes(op="call_function", target=aten.expand.default)
    return [node for node in nodes if _was_one(node)]


def _filled(graph: fx.Graph) -> list[fx.Node]:
    """Return values that are the same everywhere."""
    return [node for node in graph.nodes if node.target in FILLED]


def _was_one(node: fx.Node) -> bool:
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    return len(after) > 0 and (len(before) < len(after) or before[0] == 1)


def _splits(node: fx.Node, batch: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] % batch == 0
