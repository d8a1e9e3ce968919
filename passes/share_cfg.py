"""Share a site across CFG: x → site → y   becomes   conditional half of x → site → y, y."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass
from .batch_following import Followed, follow_batch
from .graphs import call, find, infer
from .halves import Halves, halves_of
from .halving import check_half, take_half, write_half
from .program import CfgLayout, Site
from .sites import region

__all__ = ["ShareCfg"]

aten = torch.ops.aten
HALF = "ditc.half"
"""Key of `Node.meta` that marks a slice as the conditional half."""


@dataclass(frozen=True)
class ShareCfg(Pass):
    """Compute each `asc` site on the conditional half alone; its output serves both halves.

    Whatever enters the site and holds both halves is sliced, a residual looked up among it;
    whatever leaves it, slot writes among it, is repeated for both halves.

    Attributes:
        sites: those whose method is `asc` or `wa-rs+asc`.
        cfg: order of the halves.
        latents: name of the input that holds both halves of the latents first.
    """

    name: ClassVar[str] = "share-cfg"
    sites: tuple[Site, ...]
    cfg: CfgLayout
    latents: str

    def rewrite(self, graph: fx.Graph) -> int:
        """Halve sites and return how many."""
        latents = find(graph, self.latents)
        if latents is None or not self.sites:
            return 0
        followed = follow_batch(graph, latents, latents.meta["val"].shape[0])
        return sum(self._halve(graph, site, followed) for site in self.sites)

    def _halve(self, graph: fx.Graph, site: Site, followed: Followed) -> int:
        inside = region(graph, site.projections, site.exits)
        members = set(inside)
        entries = {arg for node in inside for arg in node.all_input_nodes} - members
        if not inside or any(entry.meta.get(HALF) for entry in entries):
            return 0
        halves = halves_of(site, inside, followed)
        before = {node: node.meta["val"] for node in halves.axes}
        self._enter(graph, halves)
        for node, axis in halves.axes.items():
            write_half(node, axis)
        infer(node for node in inside if node in halves.axes)
        for node, axis in halves.axes.items():
            check_half(node, before[node], axis)
        for node in inside:
            outside = [user for user in node.users if user not in members]
            if outside and node in halves.axes:
                _repeat(graph, node, outside)
        return 1

    def _enter(self, graph: fx.Graph, halves: Halves) -> None:
        """Slice the conditional half off what is needed of half and made of both."""
        for (entry, axis), users in halves.entries.items():
            with graph.inserting_before(_first_computed_after(graph, entry)):
                half = take_half(entry, axis, last=self.cfg == "uncond-first")
            half.meta[HALF] = True
            for user in users:
                user.replace_input_with(entry, half)


def _repeat(graph: fx.Graph, node: fx.Node, users: list[fx.Node]) -> None:
    with graph.inserting_after(node):
        both = call(graph, aten.cat.default, [node, node])
    for user in users:
        user.replace_input_with(node, both)


def _first_computed_after(graph: fx.Graph, entry: fx.Node) -> fx.Node:
    """Return the node to insert before: behind the entry and behind all inputs."""
    if entry.op == "call_function":
        return entry.next
    computed: fx.Node = next(node for node in graph.nodes if node.op == "call_function")
    return computed
