"""Windows as they are named on the command line, and what they are at the sites of a program."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ditc.passes import Plan, TileWindow, Window
from ditc.passes.window import SiteWindow
from ditc.runtime.errors import DitcError

if TYPE_CHECKING:
    from ditc.passes import Program

__all__ = ["WindowChoice", "parse_window", "windowed", "with_windows"]

FORM = re.compile(
    r"band(?::(?P<radius>\d{1,9}))?|block:(?P<block>\d{1,9})"
    r"|tile:(?P<tile>\d{1,5}(?:x\d{1,5}){1,2})(?::(?P<reach>\d{1,5}(?:x\d{1,5}){0,2}))?"
)


@dataclass(frozen=True)
class WindowChoice:
    """A window named on the command line.

    Attributes:
        radius: tokens on each side of a band, None for an eighth of all.
        block: tokens of a block, 1 for a band.
        tile: tokens of a tile along each axis, empty where the window isn't of tiles.
        reach: tiles seen on each side along each axis.
    """

    radius: int | None = None
    block: int = 1
    tile: tuple[int, ...] = ()
    reach: tuple[int, ...] = ()


def parse_window(text: str) -> WindowChoice:
    """Return the window that a text names.

    Raises:
        DitcError: if it is of no known form.
    """
    found = FORM.fullmatch(text)
    if found is None:
        raise DitcError(
            f"window {text!r} is not known: expected band, band:128, block:64, tile:8x8 or "
            "tile:8x8:2"
        )
    tile, reach = _sizes(found["tile"]), _sizes(found["reach"])
    if len(reach) < 2:
        reach = (reach or (1,)) * len(tile)
    block = int(found["block"] or 1)
    if 0 in (block, *tile) or len(reach) != len(tile):
        raise DitcError(f"window {text!r}: expected sizes of at least 1, and as many of reach")
    radius = None if found["radius"] is None else int(found["radius"])
    return WindowChoice(radius, block, tile, reach)


def windowed(
    program: "Program", choice: WindowChoice | None
) -> "tuple[Program, Mapping[str, SiteWindow]]":
    """Return a program laid out for a window, and the window of each of its eligible sites.

    Sites that aren't over the grid's tokens, as attention over time, have a band.

    Raises:
        PassError: if the model's tokens can't lie in such tiles.
        PlanError: if there is no such window.
    """
    from ditc.passes import with_tile_layout  # which needs torch

    choice = choice or WindowChoice()
    if choice.tile:
        program = with_tile_layout(program, choice.tile)
    sites = [site for site in program.sites if site.eligible]
    return program, {
        site.name: _band(choice, site.tokens)
        if site.tiles is None
        else TileWindow(site.tiles.grid, site.tiles.tile, choice.reach)
        for site in sites
    }


def with_windows(plan: Plan, windows: Mapping[str, SiteWindow]) -> Plan:
    """Return a plan with other windows at its sites; it is written then, no longer found."""
    own = {name: windows.get(name, window) for name, window in plan.windows.items()}
    return replace(plan, windows=own, origin=None, losses=None, pareto=None)


def _band(choice: WindowChoice, tokens: int) -> Window:
    if choice.radius is not None:
        return Window(choice.radius)
    if choice.block == 1:
        return Window.default(tokens)
    return Window(max(round(tokens / 8 / choice.block), 1) * choice.block, choice.block)


def _sizes(text: str | None) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x")) if text else ()
