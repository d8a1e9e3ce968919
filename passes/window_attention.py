"""Window a site: attention(q, k, v) → O   becomes   window_attention(q, k, v) + lookup(R) → O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass
from .graphs import add_lookup, call, find
from .keep_slots import window_call
from .program import Site
from .slots import residual_slot
from .window import SiteWindow

__all__ = ["WindowAttention"]


@dataclass(frozen=True)
class WindowAttention(Pass):
    """Replace each `wa-rs` site's attention by a window plus the residual kept earlier.

    Attributes:
        sites: those whose method is `wa-rs` or `wa-rs+asc`.
        windows: window of each of them.
    """

    name: ClassVar[str] = "window-attention"
    sites: tuple[Site, ...]
    windows: Mapping[str, SiteWindow]

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace attention nodes and return of how many sites."""
        return sum(self._replace(graph, site) for site in self.sites)

    def _replace(self, graph: fx.Graph, site: Site) -> int:
        attention = find(graph, site.attention)
        if attention is None or not attention.users:
            return 0
        residual = add_lookup(graph, residual_slot(graph, site))
        windowed = window_call(graph, site, self.windows[site.name], attention)
        with graph.inserting_after(windowed):
            output = call(graph, torch.ops.aten.add.Tensor, windowed, residual)
        attention.replace_all_uses_with(output)
        return 1
