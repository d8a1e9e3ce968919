"""Lay tokens out in tiles: x → blocks → y   becomes   x in tile order → blocks → y put back.

From where latents become a sequence the axis of image tokens is followed through the graph. What
treats each token alike stays as it is; what holds something for each token, as position embeddings
and rotary tables, is put in order once (`ordering.py`); where tokens are unfolded again, or
returned, they are put back. At the sites between nothing is moved.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, combinations
from operator import mul

from torch import fx

from ditc.runtime.errors import PassError

from .base import run
from .graphs import copy_module, find, shape_of
from .grid import token_grid
from .ordering import RESHAPES, Ordering
from .program import Program, Site
from .remove_dead_code import RemoveDeadCode
from .tile_window import TileLayout, TileWindow
from .token_axis import TokenAxis, reshaped
from .token_following import Following
from .verify import verify_values
from .window import SiteWindow

__all__ = ["laid_out_for", "with_tile_layout"]


def with_tile_layout(
    program: Program, tile: Sequence[int], grid: Sequence[int] | None = None
) -> Program:
    """Return a program that computes the same with its image tokens in tile order.

    Its inputs and outputs are as before; sites over the grid's tokens have `tiles`, and take
    windows of such tiles.

    Args:
        program: a program in the model's order, without a prologue.
        tile: tokens of a tile along each axis of the grid.
        grid: image tokens along (rows, columns) or (frames, rows, columns), found if None.

    Raises:
        PassError: if the grid can't be told, or the model needs its tokens in its own order on the
            way, naming the operator.
        PlanError: if there are no such tiles on the grid.
    """
    layout = TileLayout(tuple(grid or _grid(program, tile)), tuple(tile))
    present = {site.tiles for site in program.sites} - {None}
    if present == {layout}:
        return program
    if present or program.prologue is not None:
        raise PassError("tokens can be laid out once, and before a prologue is split off")
    reasons = [(0, f"the latents nowhere become a sequence of {layout.tokens} tokens")]
    for name, axis in _entries(program, layout):
        module = copy_module(program.graph_module)
        following = _entered(module.graph, layout, name, axis)
        try:
            following.run()
            return _laid_out(program, module, following, layout)
        except PassError as error:
            reasons.append((len(following.axes), str(error)))
    reason = max(reasons)[1]  # of where they were followed furthest
    raise PassError(f"image tokens can't lie in {layout}: {reason}; use a band instead")


def laid_out_for(program: Program, windows: Iterable[SiteWindow]) -> Program:
    """Return a program whose tokens lie as windows take them: itself unless they are of tiles.

    Raises:
        PassError: as `with_tile_layout` does.
    """
    layouts = [window.layout for window in windows if isinstance(window, TileWindow)]
    if not layouts or any(site.tiles for site in program.sites):
        return program
    return with_tile_layout(program, layouts[0].tile, layouts[0].grid)


def _grid(program: Program, tile: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of the program, or of the sites with most tokens that lie on one."""
    rank, other = len(tile), None
    if program.grid is not None and len(program.grid) == rank:
        return program.grid
    able = [site for site in program.sites if site.eligible]
    for count in sorted({_image(site) for site in able}, reverse=True):
        alike = [site for site in able if _image(site) == count]
        found = token_grid(alike, program.latents.shape, None, program.example)
        if found is not None and len(found) == rank:
            return found
        other = other or found
    if program.grid is not None or other is not None:
        raise _other_rank(program.grid or other or (), tile)
    raise PassError(
        f"the grid that image tokens lie on, of {rank} axes, can't be told: state it with grid="
    )


def _other_rank(grid: tuple[int, ...], tile: Sequence[int]) -> PassError:
    pairs = zip(tile[-len(grid) :], grid[-len(tile) :], strict=True)  # of the last axes
    sizes = [min(side, most) for side, most in pairs]
    fitting = [1] * (len(grid) - len(sizes)) + sizes
    return PassError(
        f"the model's grid has {len(grid)} axes ({' x '.join(map(str, grid))}), the tile "
        f"{'x'.join(map(str, tile))} has {len(tile)}: give tile:{'x'.join(map(str, fitting))}"
    )


def _image(site: Site) -> int:
    return site.tokens - (site.text[1] - site.text[0])


def _entries(program: Program, layout: TileLayout) -> Iterator[tuple[str, TokenAxis]]:
    """Yield where latents may become a sequence: name of the node, and where it holds the tokens.

    That is the latents themselves if they come as a sequence, or a reshape that makes one axis of
    those of the grid.
    """
    graph = program.graph_module.graph
    latents = find(graph, program.latents.name)
    assert latents is not None
    made = {latents}
    for node in graph.nodes:
        if any(arg in made for arg in node.all_input_nodes) and node.op != "output":
            made.add(node)
        if node is latents and layout.tokens in shape_of(node)[1:]:
            yield (
                node.name,
                TokenAxis(shape_of(node).index(layout.tokens, 1), layout.tokens, layout.tokens),
            )
        if node in made and node.target in RESHAPES:
            axis = _merged(shape_of(node.all_input_nodes[0]), shape_of(node), layout)
            if axis is not None:
                yield node.name, axis


def _merged(before: Sequence[int], after: Sequence[int], layout: TileLayout) -> TokenAxis | None:
    """Return the axis on which a reshape puts all axes of the grid together, None if on none."""
    for first, last in combinations(range(len(before) + 1), 2):
        run = before[first:last]
        if last - first < 2 or 1 in (run[0], run[-1]) or math.prod(run) != layout.tokens:
            continue
        cuts, lines = (set(accumulate(sizes, mul)) for sizes in (run, layout.grid))
        if not (cuts <= lines or lines <= cuts):
            continue
        whole = (*before[:first], layout.tokens, *before[last:])
        found = reshaped(TokenAxis(first, layout.tokens, layout.tokens), whole, after)
        if found is not None:
            return found
    return None


def _entered(graph: fx.Graph, layout: TileLayout, name: str, axis: TokenAxis) -> Following:
    """Put tokens in tile order behind a node, and return what follows them from there."""
    start = find(graph, name)
    assert start is not None
    ordering = Ordering(graph, layout)
    users = list(start.users)
    ordered = ordering.select(start, axis)
    for user in users:
        user.replace_input_with(start, ordered)
    return Following(ordering, ordered, axis)


def _laid_out(
    program: Program, module: fx.GraphModule, following: Following, layout: TileLayout
) -> Program:
    run((RemoveDeadCode(),), module)
    verify_values(module)
    sites = tuple(_site(site, module.graph, following, layout) for site in program.sites)
    if not any(site.tiles and site.eligible for site in sites):
        raise PassError("no site is among them that a plan may compress")
    return replace(program, graph_module=module, sites=sites)


def _site(site: Site, graph: fx.Graph, following: Following, layout: TileLayout) -> Site:
    """Return a site with the order of its tokens.

    Raises:
        PassError: if it attends among as many image tokens, which were put back before it.
    """
    query, key = find(graph, site.query), find(graph, site.key)
    assert query is not None
    assert key is not None
    held = following.axes.get(query)
    tokens = len(shape_of(query)) - 2
    expected = TokenAxis(tokens, site.tokens, layout.tokens, 0 if site.text[0] else site.text[1])
    if held == following.axes.get(key) == expected:
        return replace(site, tiles=layout)
    if held is None and site.eligible and _image(site) == layout.tokens:
        left = following.first_left()
        raise PassError(
            f"site {site.name} doesn't get them in tile order"
            + (f": {left} before it takes them in the model's own" if left else "")
        )
    return site
