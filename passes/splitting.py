"""Split a program: f(latents, timestep, prompt)   becomes   g(latents, values of a prologue).

What doesn't depend on the latents leaves the steps: what depends on conditioning and weights alone
runs once for a prompt, what depends on the timestep too once for all steps. Found by dependence,
never by name, and only as far as it is worth what is kept for it (`cutting.py`).
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from torch import fx

from .counting import multiply_adds
from .cutting import Cut, best_cut
from .dependence import levels
from .graphs import copy_module, find, flat_outputs, weight
from .key_masks import joining
from .program import Program, Site
from .prologue import Part, Prologue, Value
from .sites import region
from .verify import verify, verify_values

__all__ = ["split_prologue"]


def split_prologue(program: Program, steps: int, like: Program | None = None) -> Program:
    """Return a program that computes the same, with a prologue; itself if none is worth it.

    Its graph takes values of the prologue in the place of inputs that only they were made from.
    Sites that a plan may compress stay whole; of others what belongs to the prompt leaves, and
    those that leave altogether are no sites any more.

    Args:
        program: a program without a prologue.
        steps: how many steps there are, for each of which a step's values are kept.
        like: the same module at another batch size, for which it is decided what leaves.
    """
    module = program.graph_module
    cut = _cut(program if like is None else like, steps)
    if like is not None:
        cut = cut.on(module.graph)
    hoisted = cut.prompt | cut.step
    crossing = [
        node for node in module.graph.nodes if node in hoisted and set(node.users) - hoisted
    ]
    if not crossing:
        return program
    moving = _moving(module.graph)
    from_prompt = [
        node
        for node in module.graph.nodes
        if node in cut.prompt
        and (node in crossing or (node in moving and set(node.users) - cut.prompt))
    ]
    from_step = [node for node in crossing if node in cut.step]
    main = _main(module, crossing)
    prologue = Prologue(
        prompt=_part(module, [], from_prompt) if from_prompt else None,
        step=_part(module, from_prompt, from_step) if from_step else None,
        steps=steps,
        weight_bytes=_weight_bytes(module.graph) - _weight_bytes(main.graph),
        multiply_adds=multiply_adds(module.graph) - multiply_adds(main.graph),
    )
    return replace(
        program,
        graph_module=main,
        sites=tuple(_left(site, main.graph) for site in program.sites if _stays(site, main.graph)),
        prologue=prologue,
    )


def _cut(program: Program, steps: int) -> Cut:
    return best_cut(program.graph_module, levels(program), _pinned(program), steps)


def _pinned(program: Program) -> set[fx.Node]:
    """Return the nodes of the sites that plans compress, and what the program returns.

    What joins the factors of a mask stays too: a window needs these.
    """
    graph = program.graph_module.graph
    pinned = set(flat_outputs(graph))
    for site in program.sites:
        attention = find(graph, site.attention)
        if site.eligible and attention is not None:
            pinned.update(region(graph, site.projections, site.exits))
            pinned.update(joining(attention, site.context_tokens))
    return pinned


def _moving(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on an input; the others are views of weights, or constants."""
    found = set(graph.find_nodes(op="placeholder"))
    for node in graph.nodes:
        if any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def _stays(site: Site, graph: fx.Graph) -> bool:
    return find(graph, site.attention) is not None


def _left(site: Site, graph: fx.Graph) -> Site:
    """Return a site less the projections that it was relieved of."""
    kept = tuple(name for name in site.projections if find(graph, name) is not None)
    return replace(site, projections=kept)


def _main(module: fx.GraphModule, crossing: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the graph of a step, in a module that still holds every weight of the program."""
    outputs = flat_outputs(module.graph)
    main = copy_module(module)
    main.graph = _extract(module, crossing, outputs)
    verify(main)
    verify_values(main)
    return main


def _part(module: fx.GraphModule, given: Sequence[fx.Node], made: Sequence[fx.Node]) -> Part:
    graph = _extract(module, given, made)
    part = fx.GraphModule(module, graph)
    verify(part)
    return Part(
        graph_module=part,
        inputs=tuple(node.name for node in graph.find_nodes(op="placeholder")),
        values=tuple(_value(node) for node in made),
        multiply_adds=multiply_adds(graph),
    )


def _value(node: fx.Node) -> Value:
    value = node.meta["val"]
    return Value(node.name, tuple(value.shape), value.dtype)


def _extract(
    module: fx.GraphModule, given: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.Graph:
    """Return what makes some nodes of a graph from inputs and other nodes; names stay.

    Args:
        module: the whole.
        given: nodes that become inputs, behind those of the graph that are still needed.
        outputs: nodes to return.
    """
    needed = _behind(outputs, set(given))
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    inputs = [n for n in module.graph.find_nodes(op="placeholder") if n in needed]
    for node in (*inputs, *(n for n in given if n in needed)):
        made[node] = graph.placeholder(node.name)
        made[node].meta = {"val": node.meta["val"]}
    for node in module.graph.nodes:
        if node in needed and node not in made:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(tuple(made[node] for node in outputs))
    return graph


def _behind(outputs: Iterable[fx.Node], given: Set[fx.Node]) -> set[fx.Node]:
    """Return what outputs are made from, up to the nodes that are given."""
    found: set[fx.Node] = set()
    front = list(outputs)
    while front:
        node = front.pop()
        if node not in found:
            found.add(node)
            front.extend(() if node in given else node.all_input_nodes)
    return found


def _weight_bytes(graph: fx.Graph) -> int:
    """Return the bytes of the weights that a graph reads, tied ones once."""
    owner = graph.owning_module
    assert owner is not None
    found = {
        id(t): t for t in (weight(owner, str(n.target)) for n in graph.find_nodes(op="get_attr"))
    }
    return sum(tensor.nbytes for tensor in found.values())
