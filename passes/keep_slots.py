"""Keep what later steps read: x → site → y   becomes   x → site → y, slot write of y or O − W."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .base import Pass
from .graphs import add_outputs, call, find, shape_of
from .key_masks import attention_mask, mask_factors, with_mask
from .program import Site
from .window import SiteWindow
from .window_nodes import Windowed, add_windowed

__all__ = ["KeepSlots", "window_call"]

aten = torch.ops.aten
WRITES = "ditc.writes"
"""Key of the output node's meta under which slots that are written are noted."""


@dataclass(frozen=True)
class KeepSlots(Pass):
    """Return, behind the graph's outputs, first kept outputs and then kept residuals.

    The output is kept after the output projection. The residual is `O − W` before it, per head:
    full attention less attention in the window (PAPER: arXiv 2406.08552, window attention with
    residual sharing).

    Attributes:
        outputs: sites whose projected output a later `ast` step reads.
        residuals: sites whose residual a later `wa-rs` step reads.
        windows: window of each of the latter.
    """

    name: ClassVar[str] = "keep-slots"
    outputs: tuple[Site, ...]
    residuals: tuple[Site, ...]
    windows: Mapping[str, SiteWindow]

    def rewrite(self, graph: fx.Graph) -> int:
        """Add slot writes and return of how many sites."""
        outputs = sum(_keep_output(graph, site) for site in self.outputs)
        return outputs + sum(self._keep_residual(graph, site) for site in self.residuals)

    def _keep_residual(self, graph: fx.Graph, site: Site) -> int:
        attention = find(graph, site.attention)
        if attention is None or not _first_write(graph, f"{site.name}.residual"):
            return 0
        windowed = window_call(graph, site, self.windows[site.name], attention)
        with graph.inserting_after(windowed):
            residual = call(graph, aten.sub.Tensor, attention, windowed)
        add_outputs(graph, [residual])
        return 1


def _keep_output(graph: fx.Graph, site: Site) -> int:
    exits = [node for node in (find(graph, name) for name in site.exits) if node is not None]
    if not exits or not _first_write(graph, f"{site.name}.output"):
        return 0
    add_outputs(graph, exits)
    return 1


def _first_write(graph: fx.Graph, slot: str) -> bool:
    """Note that a slot is written; return whether it wasn't before."""
    meta = graph.output_node().meta
    written = meta.get(WRITES, ())
    meta[WRITES] = (*written, slot)
    return slot not in written


def window_call(graph: fx.Graph, site: Site, window: SiteWindow, attention: fx.Node) -> fx.Node:
    """Add the window attention of a site's query, key and value behind the attention.

    A mask of the attention holds in the window too.

    Raises:
        PassError: if the attention has a mask for each query.
    """
    named = [find(graph, name) for name in (site.query, site.key, site.value)]
    inputs = [node for node in named if node is not None]
    with graph.inserting_before(attention.next):
        heads = [_as_many_heads(graph, node, inputs[0]) for node in inputs]
        mask = attention_mask(attention)
        if mask is not None:
            factors = mask_factors(mask, site.context_tokens)
            if factors is None:
                raise PassError(
                    f"site {site.name}: {mask.name} masks keys for each query, so it can have no "
                    "window: use another method than wa-rs there"
                )
            heads[:2] = with_mask(graph, factors, heads[0], heads[1], site.scale)
        return add_windowed(graph, heads, Windowed(window, site.scale, site.text))


def _as_many_heads(graph: fx.Graph, node: fx.Node, query: fx.Node) -> fx.Node:
    """Repeat the heads of grouped keys or values, each for its group of query heads."""
    groups = shape_of(query)[-3] // shape_of(node)[-3] if len(shape_of(query)) > 3 else 1
    if groups == 1:
        return node
    return call(graph, aten.repeat_interleave.self_int, node, groups, len(shape_of(node)) - 3)
