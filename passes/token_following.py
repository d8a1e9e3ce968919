"""Follow image tokens in tile order through a graph, and put into order what meets them."""

from collections.abc import Iterable

from torch import fx

from ditc.runtime.errors import PassError

from .cores import Core, find_core
from .graphs import shape_of
from .key_masks import attention_mask
from .ordering import Ordering
from .token_axis import TokenAxis, moved
from .token_rules import step
from .token_step import Held, MixedError

__all__ = ["Following"]


class Following:
    """Where the values of a graph hold tokens in tile order, node after node.

    An operator that needs tokens in the model's order gets them put back. Of what it makes nothing
    may meet tokens in tile order again.

    Args:
        ordering: adds nodes that put values in order.
        start: a node whose tokens are in tile order.
        axis: where it holds them.
    """

    def __init__(self, ordering: Ordering, start: fx.Node, axis: TokenAxis) -> None:
        self.axes: dict[fx.Node, Held] = {start: axis}
        self._ordering = ordering
        self._left: dict[fx.Node, str] = {}
        self._start = start

    def run(self) -> None:
        """Follow tokens to the end of the graph.

        Raises:
            PassError: if tokens in tile order meet some that were put back, naming the operator
                for which they were.
        """
        graph = self._ordering.graph
        cores = [core for node in graph.nodes if (core := find_core(node)) is not None]
        outputs = {core.output: core for core in cores}
        inside = {node for core in cores for node in _inside(core)}
        for node in list(graph.nodes):
            if node.op == "output" or not self._holding(node):
                self._put_back(node) if node.op == "output" else self._inherit(node)
            elif node in outputs:
                self._attend(outputs[node])
            elif node not in inside:
                self._follow(node)

    def first_left(self) -> str:
        """Return for what tokens were put back first, empty if for nothing."""
        return next(iter(self._left.values()), "")

    def _holding(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.all_input_nodes if self.axes.get(arg) is not None]

    def _inherit(self, node: fx.Node) -> None:
        left = [self._left[arg] for arg in node.all_input_nodes if arg in self._left]
        if left:
            self._left[node] = left[0]

    def _follow(self, node: fx.Node) -> None:
        if node is self._start or node in self.axes:
            return
        try:
            found = step(node, self.axes)
        except MixedError:
            self._put_back(node)
            self._left[node] = f"{node.name} ({node.target})"
            return
        self.axes[node] = found.held
        for side, axis in found.sides:
            node.replace_input_with(side, self._ordered(node, side, [axis]))

    def _attend(self, core: Core) -> None:
        """Attention minds no order of keys; its output has that of its queries."""
        query, key, value = (self.axes.get(node) for node in (core.query, core.key, core.value))
        node, rank = core.output, len(shape_of(core.output))
        rows = _at(query, rank - 2)
        columns = _at(key, rank - 2)
        if key != value or (query is not None and rows is None and query != key):
            raise PassError(f"{node.name} attends among tokens in different orders")
        self.axes[node] = query
        mask = attention_mask(core.output)
        if core.obstacle and mask is None:
            raise PassError(f"{node.name} has a mask that isn't an operand of its own")
        if mask is None:
            return
        wanted = [(rows, 2), (columns, 1)]
        sizes, last = shape_of(mask), len(shape_of(mask))
        moves = [
            moved(axis, last - place)
            for axis, place in wanted
            if axis is not None and last >= place and sizes[last - place] > 1
        ]
        if moves:
            node.replace_input_with(mask, self._ordered(node, mask, moves))

    def _ordered(self, node: fx.Node, side: fx.Node, axes: Iterable[TokenAxis]) -> fx.Node:
        if side in self._left:
            raise PassError(
                f"{node.name} joins them with what {self._left[side]} made of them in the model's "
                "own order"
            )
        for axis in axes:
            side = self._ordering.ordered(side, axis)
        return side

    def _put_back(self, node: fx.Node) -> None:
        for arg in self._holding(node):
            axis = self.axes[arg]
            if not isinstance(axis, TokenAxis):
                raise PassError(f"{node.name} takes several values with image tokens as one")
            node.replace_input_with(arg, self._ordering.select(arg, axis, back=True))


def _at(held: Held, dim: int) -> TokenAxis | None:
    return held if isinstance(held, TokenAxis) and held.dim == dim else None


def _inside(core: Core) -> set[fx.Node]:
    """Return the nodes between query, key and value and the attention's output."""
    ends = {core.query, core.key, core.value}
    behind: set[fx.Node] = set()
    front = [core.output]
    while front:
        for arg in front.pop().all_input_nodes:
            if arg not in ends and arg not in behind:
                behind.add(arg)
                front.append(arg)
    reached = set(ends)
    for node in core.output.graph.nodes:
        if node in behind and any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return reached - ends
