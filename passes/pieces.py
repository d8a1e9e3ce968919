"""Cut a program at its sites, so that a step can be run piece by piece and from any site on.

    glue 0 → site 0 → glue 1 → site 1 → … → glue M

A site comes in three pieces, entry → attention or window → exit, so that a method is put together
from what is at hand. Matrix products that no site leads to, as those of timestep and conditioning,
lie in the glue in front of all sites: from whichever site on a step is run, they are at hand.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from ditc.runtime.errors import PassError

from .base import run
from .counting import multiply_adds, node_multiply_adds
from .graphs import find, flat_outputs
from .half_pieces import HalfPieces, half_pieces_of
from .keep_slots import window_call
from .piece import Piece, SitePieces
from .program import Program, Site
from .remove_dead_code import RemoveDeadCode
from .sites import region
from .verify import verify
from .window import SiteWindow

__all__ = ["Pieces", "cut"]


@dataclass(frozen=True, eq=False)
class Pieces:
    """A program, cut at sites.

    Attributes:
        glue: what runs before each site, and behind the last.
        sites: the sites in the order in which they run.
        outputs: names of the nodes that the program returns.
        halves: pieces for half the batch; None where both halves always have to run.
    """

    glue: tuple[Piece, ...]
    sites: tuple[SitePieces, ...]
    outputs: tuple[str, ...]
    halves: HalfPieces | None


def cut(program: Program, windows: Mapping[str, SiteWindow]) -> Pieces:
    """Cut a program at the sites that `windows` names.

    Raises:
        PassError: if the sites overlap, or one's output doesn't pass through its exits alone.
    """
    graph = program.graph_module.graph
    sites = [site for site in program.sites if site.name in windows]
    insides = [region(graph, site.projections, site.exits) for site in sites]
    taken = {node for inside in insides for node in inside}
    if len(taken) != sum(len(inside) for inside in insides):
        raise PassError("sites overlap: a node belongs to two of them")
    runs = _runs_of_glue(graph, sites, taken)
    glue = tuple(_piece(program, nodes, _used_elsewhere(nodes)) for nodes in runs)
    parts = tuple(
        _site_pieces(program, site, inside, windows[site.name])
        for site, inside in zip(sites, insides, strict=True)
    )
    returned = tuple(node.name for node in flat_outputs(graph))
    return Pieces(glue, parts, returned, half_pieces_of(program, glue, parts))


def _runs_of_glue(
    graph: fx.Graph, sites: Sequence[Site], taken: set[fx.Node]
) -> list[list[fx.Node]]:
    """Return the nodes in front of each site and behind the last, in graph order.

    Args:
        graph: to cut.
        sites: where.
        taken: their nodes.
    """
    runs: list[list[fx.Node]] = [[] for _ in range(len(sites) + 1)]
    behind = {name: number + 1 for number, site in enumerate(sites) for name in site.exits}
    left = {number + 1: len(site.exits) for number, site in enumerate(sites)}
    early = _products_in_front(graph, taken)
    place: dict[fx.Node, int] = {}
    current = 0
    for node in graph.nodes:
        sources = [place[arg] for arg in node.all_input_nodes]
        place[node] = sources[0] if _is_part(node) else max([current, *sources])
        place[node] = 0 if node in early else place[node]
        if node.op == "call_function" and node not in taken:
            runs[place[node]].append(node)
        if node.name in behind:  # of several exits the last ends the site
            place[node] = behind[node.name]
            left[place[node]] -= 1
            current = current if left[place[node]] else place[node]
    return runs


def _site_pieces(
    program: Program, site: Site, inside: Sequence[fx.Node], window: SiteWindow
) -> SitePieces:
    made = {node.name: node for node in inside}
    attention = made[site.attention]
    before = _needed([attention], set(inside))
    heads = [made[name] for name in (site.query, site.key, site.value) if name in made]
    entered = _with_parts(_needed(heads, before))
    entry = [node for node in inside if node in entered]
    core = [node for node in inside if node in before - entered]
    back = [node for node in inside if node not in before | entered]
    leaks = sorted(set(_used_elsewhere(inside)) - set(site.exits))
    if leaks:
        raise PassError(f"site {site.name}: {leaks[0]} is used outside, and is none of its exits")
    yielded = dict.fromkeys([*_used_elsewhere(entry), *(node.name for node in heads)])
    return SitePieces(
        site=site,
        whole=_piece(program, inside, list(site.exits)),
        entry=_piece(program, entry, list(yielded)),
        attention=_piece(program, core, [site.attention]),
        window=_windowed(program, core, site, window),
        exit=_piece(program, back, list(site.exits)),
    )


def _windowed(program: Program, core: Sequence[fx.Node], site: Site, window: SiteWindow) -> Piece:
    heads = (site.query, site.key, site.value)
    piece = _piece(program, core, [site.attention], heads)
    graph = piece.module.graph
    attention = find(graph, site.attention)
    assert attention is not None
    windowed = window_call(graph, site, window, attention)
    attention.replace_all_uses_with(windowed)
    run((RemoveDeadCode(),), piece.module)
    return Piece(piece.module, piece.inputs, piece.outputs, multiply_adds(graph))


def _products_in_front(graph: fx.Graph, taken: set[fx.Node]) -> set[fx.Node]:
    """Return the matrix products that no site leads to, and what they are computed from."""
    behind: set[fx.Node] = set()
    for node in graph.nodes:
        if node in taken or any(arg in behind for arg in node.all_input_nodes):
            behind.add(node)
    apart = {node for node in graph.nodes if node not in behind}
    return _with_parts(_needed([node for node in apart if node_multiply_adds(node)], apart))


def _needed(nodes: Sequence[fx.Node], inside: set[fx.Node]) -> set[fx.Node]:
    """Return nodes and those inside that they are computed from."""
    found: set[fx.Node] = set()
    front = list(nodes)
    while front:
        current = front.pop()
        if current in inside and current not in found:
            found.add(current)
            front.extend(current.all_input_nodes)
    return found


def _with_parts(nodes: set[fx.Node]) -> set[fx.Node]:
    """Return nodes and the parts of those that yield several values: only tensors are cut off."""
    return nodes | {user for node in nodes for user in node.users if _is_part(user)}


def _is_part(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _used_elsewhere(nodes: Iterable[fx.Node]) -> list[str]:
    own = set(nodes)
    return [node.name for node in nodes if any(user not in own for user in node.users)]


def _piece(
    program: Program, nodes: Sequence[fx.Node], outputs: Sequence[str], wanted: Sequence[str] = ()
) -> Piece:
    """Copy nodes into a graph of their own; what they use of others, or is wanted, is an input."""
    graph = fx.Graph()
    own = set(nodes)
    mapping: dict[fx.Node, fx.Node] = {}
    outside = dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in own)
    known = {node.name: node for node in program.graph_module.graph.nodes} if wanted else {}
    outside |= dict.fromkeys(known[name] for name in wanted if known[name] not in own)
    inputs = [node for node in outside if node.op != "get_attr"]
    for source in inputs:
        mapping[source] = graph.placeholder(source.name)
        mapping[source].meta = dict(source.meta)
    for source in outside:
        if source.op == "get_attr":
            mapping[source] = graph.node_copy(source)
    for node in nodes:
        mapping[node] = graph.node_copy(node, mapping.__getitem__)
    by_name = {source.name: node for source, node in mapping.items()}
    graph.output(tuple(by_name[name] for name in outputs))
    module = fx.GraphModule(program.graph_module, graph)
    verify(module)
    return Piece(module, tuple(node.name for node in inputs), tuple(outputs), multiply_adds(graph))
