"""Find attention sites in a graph: by operators and data flow, never by class names."""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import fx

from .cores import Core, find_core
from .graphs import given, module_path, shape_of
from .operators import LAYOUT, LINEAR, activation_of, is_pointwise
from .program import Site, SiteKind
from .tokens import image_tokens, token_axes

__all__ = ["find_sites", "region"]

aten = torch.ops.aten
VIDEO_DIM = 5
"""Axes of a video's latents: height and width last, frames before or behind channels."""
FRAMES_AXES = frozenset({1, 2})


def find_sites(
    graph: fx.Graph, example: Mapping[str, torch.Tensor], latents: str, *, temporal: bool = False
) -> tuple[Site, ...]:
    """Return the attention sites of a graph, in the order in which they run.

    An attention is `scaled_dot_product_attention`, or a softmax over the last axis between two
    matrix products. Its exits are the first projections that its output reaches, its projections
    the last ones before query, key and value.

    Args:
        graph: of a captured module.
        example: arguments to run it with, by input name.
        latents: name of the input that holds the latents.
        temporal: whether attention of each place over frames may be compressed.
    """
    found = (find_core(node) for node in graph.nodes)
    cores = [core for core in found if core is not None]
    sites: list[Site] = []
    for core in cores:
        sites.append(_site(core, {site.name for site in sites}))
    module = graph.owning_module
    assert module is not None
    wanted = {s.attention for s in sites if s.kind != "cross"}
    queries = {core.output: core.query for core in cores if core.output.name in wanted}
    image = {
        node.name: made for node, made in image_tokens(module, example, latents, queries).items()
    }
    told = [_with_text(site, image.get(site.attention)) for site in sites]
    if temporal or example[latents].dim() != VIDEO_DIM:
        return tuple(told)
    rows = example[latents].shape[0]
    split = {site.attention for site in told if site.eligible and _rows(site, graph) != rows}
    queries = {core.output: core.query for core in cores if core.output.name in split}
    axes = {
        node.name: along for node, along in token_axes(module, example, latents, queries).items()
    }
    return tuple(_over_frames(site, axes.get(site.attention, frozenset())) for site in told)


def _rows(site: Site, graph: fx.Graph) -> int:
    """Return how many sequences a site attends within."""
    query = next(node for node in graph.nodes if node.name == site.query)
    return math.prod(shape_of(query)[:-2]) // site.heads


def _over_frames(site: Site, axes: frozenset[int]) -> Site:
    """Return the site, not eligible if each of its sequences is one place over frames."""
    if len(axes) != 1 or not axes <= FRAMES_AXES:
        return site
    return replace(
        site, eligible=False, reason="its tokens are frames: attention over time is left alone"
    )


def _with_text(site: Site, image: tuple[bool, ...] | None) -> Site:
    """Return the site with the range of its text tokens, or why it can't have a window."""
    if image is None or all(image):
        return site
    first, last = (
        image.index(True) if any(image) else 0,
        len(image) - image[::-1].index(True) if any(image) else 0,
    )
    reason = ""
    if not any(image):
        reason = "its tokens aren't made from the latents"
    elif not all(image[first:last]) or (first > 0 and last < len(image)):
        reason = "its image tokens lie between others"
    text = (0, first) if first else (last, len(image))
    if reason:
        return replace(site, eligible=False, reason=site.reason or reason)
    return replace(site, text=text)


def _site(core: Core, taken: set[str]) -> Site:
    *batch, tokens, head_dim = shape_of(core.query)
    projections = {
        name: tuple(_projections(node))
        for name, node in (("query", core.query), ("key", core.key), ("value", core.value))
    }
    kind = _kind(core, projections)
    exits, obstacle = _exits(core.output)
    every = dict.fromkeys(node.name for nodes in projections.values() for node in nodes)
    names = tuple(node.name for node in exits)
    reason = core.obstacle or obstacle or _not_compressed(kind) or _unprojected(projections)
    entries, leak = _entries(core, every, names)
    reason = reason or leak
    return Site(
        name=_name(core.output, taken),
        kind=kind,
        tokens=tokens,
        context_tokens=shape_of(core.key)[-2],
        heads=_heads(core, batch),
        head_dim=head_dim,
        eligible=not reason,
        reason=reason,
        attention=core.output.name,
        query=core.query.name,
        key=core.key.name,
        value=core.value.name,
        scale=core.scale,
        projections=entries if leak == "" else tuple(every),
        exits=names,
    )


def _not_compressed(kind: SiteKind) -> str:
    return "cross-attention is left alone" if kind == "cross" else ""


def _unprojected(projections: dict[str, tuple[fx.Node, ...]]) -> str:
    missing = [name for name, nodes in projections.items() if not nodes]
    return f"its {missing[0]} comes from no projection" if missing else ""


def _kind(core: Core, projections: dict[str, tuple[fx.Node, ...]]) -> SiteKind:
    unprojected = {"query": core.query, "key": core.key, "value": core.value}
    entries = {
        name: {activation_of(node) for node in nodes} or {unprojected[name]}
        for name, nodes in projections.items()
    }
    if entries["query"] != entries["key"] or entries["key"] != entries["value"]:
        return "cross"
    if shape_of(core.query)[-2] != shape_of(core.key)[-2]:
        return "cross"
    return "self" if len(entries["query"]) == 1 else "joint"


def _heads(core: Core, batch: list[int]) -> int:
    """Heads a sample: the axis before tokens, or what a merged first axis holds of them."""
    if len(batch) >= 2:
        return batch[-1]
    for node in _projections(core.query):
        rows = math.prod(shape_of(activation_of(node))[:-1])
        return math.prod(shape_of(core.query)[:-1]) // rows
    return 1


def _projections(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the first linear nodes met on the way back from a node."""
    seen: set[fx.Node] = set()
    front = [node]
    while front:
        current = front.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.target in LINEAR:
            yield current
        else:
            front.extend(current.all_input_nodes)


def _exits(attention: fx.Node) -> tuple[list[fx.Node], str]:
    """Return the first linear nodes that the attention reaches, or what stands in between."""
    exits: list[fx.Node] = []
    seen = {attention}
    front = [attention]
    while front:
        node = front.pop()
        for user in node.users:
            if user in seen:
                continue
            seen.add(user)
            if user.target in LINEAR:
                exits.append(user)
            elif _joins_channels(user):
                exits.append(node)
            elif user.target in LAYOUT or _stays_attention(user, seen):
                front.append(user)
            else:
                return [], f"its output reaches {user.target} before any projection"
    if not exits:
        return [], "its output reaches no projection"
    return exits, ""


def _joins_channels(node: fx.Node) -> bool:
    """Whether attention is put beside other channels, which one projection then takes all."""
    if node.target is not aten.cat.default:
        return False
    axis = given(node, 1, "dim", 0)
    return isinstance(axis, int) and axis % len(shape_of(node)) == len(shape_of(node)) - 1


def _stays_attention(node: fx.Node, seen: set[fx.Node]) -> bool:
    """Whether a pointwise node only scales the attention's output: a gate, yes; a residual, no."""
    others = [arg for arg in node.all_input_nodes if arg not in seen]
    return is_pointwise(node) and (not others or node.target in (aten.mul.Tensor, aten.div.Tensor))


def region(graph: fx.Graph, projections: Iterable[str], exits: Iterable[str]) -> list[fx.Node]:
    """Return the nodes of a site in graph order: from its projections to its exits, inclusive."""
    first, last = set(projections), set(exits)
    inside: list[fx.Node] = []
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "output":
            continue
        feeds = any(arg in reached for arg in node.all_input_nodes)
        if node.name in first or feeds:
            inside.append(node)
            if node.name not in last:
                reached.add(node)
    return inside


def _entries(
    core: Core, projections: Iterable[str], exits: Iterable[str]
) -> tuple[tuple[str, ...], str]:
    """Return where the site begins, or the reason if what it makes is used elsewhere.

    A projection that makes more than query, key and value, as FLUX.2's does, stays outside: the
    site then begins at the nodes that take its parts.
    """
    names = set(exits)
    inside = region(core.output.graph, projections, names)
    pure: set[fx.Node] = set()
    first = ""
    for node in reversed(inside):
        if node.name in names or (node.users and all(user in pure for user in node.users)):
            pure.add(node)
        elif not any(user in pure for user in node.users):
            first = first or str(node.target)
    for node in inside:
        if node.target is operator.getitem and node.args[0] not in pure:
            pure.discard(node)
    if not pure >= {core.query, core.key, core.value, core.output}:
        return (), f"its projections also feed {first}"
    members = set(inside)
    begin = [n for n in inside if n in pure and _begins(n, members, pure)]
    return tuple(node.name for node in begin), ""


def _begins(node: fx.Node, members: set[fx.Node], pure: set[fx.Node]) -> bool:
    inner = [arg for arg in node.all_input_nodes if arg in members]
    return not inner or any(arg not in pure for arg in inner)


def _name(node: fx.Node, taken: set[str]) -> str:
    base = module_path(node) or "attention"
    if base not in taken:
        return base
    number = 1
    while f"{base}#{number}" in taken:
        number += 1
    return f"{base}#{number}"
