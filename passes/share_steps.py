"""Share a site across steps: x → site → y   becomes   lookup(slot) → y."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from .base import Pass
from .graphs import add_lookup, find
from .program import Site
from .slots import output_slots

__all__ = ["ShareSteps"]


@dataclass(frozen=True)
class ShareSteps(Pass):
    """Replace each `ast` site by the output its latest computed step left in a slot.

    What only the site needed, its projections among it, is dead afterwards.

    Attributes:
        sites: those whose method is `ast`.
    """

    name: ClassVar[str] = "share-steps"
    sites: tuple[Site, ...]

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace exits by lookups and return of how many sites."""
        return sum(_replace(graph, site) for site in self.sites)


def _replace(graph: fx.Graph, site: Site) -> int:
    exits = [find(graph, name) for name in site.exits]
    live = [node for node in exits if node is not None and node.users]
    if not live:
        return 0
    for node, slot in zip(live, output_slots(graph, site), strict=True):
        node.replace_all_uses_with(add_lookup(graph, slot))
    return 1
