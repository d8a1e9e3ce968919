"""Name the slots of a site."""

from torch import fx

from ditc.runtime.errors import PassError

from .graphs import find
from .program import Site, Slot, SlotKind

__all__ = ["output_slots", "residual_slot"]


def output_slots(graph: fx.Graph, site: Site) -> tuple[Slot, ...]:
    """Return a slot for each exit of a site, shaped as the projected output."""
    return tuple(
        _slot(graph, site, name, "output" if index == 0 else f"output{index}")
        for index, name in enumerate(site.exits)
    )


def residual_slot(graph: fx.Graph, site: Site) -> Slot:
    """Return the slot of a site's residual, shaped as the attention's output, per head."""
    return _slot(graph, site, site.attention, "residual")


def _slot(graph: fx.Graph, site: Site, name: str, suffix: str) -> Slot:
    node = find(graph, name)
    if node is None:
        raise PassError(f"site {site.name}: graph has no node {name}")
    value = node.meta["val"]
    kind: SlotKind = "residual" if suffix == "residual" else "output"
    return Slot(f"{site.name}.{suffix}", site.name, kind, tuple(value.shape), value.dtype)
