"""What a site needs of its entries to compute one half of the batch: found from its exits back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from ditc.runtime.errors import PassError

from .batch_following import Followed
from .batch_moves import asked, carriers, indifferent
from .program import Site

__all__ = ["Halves", "halves_of"]


@dataclass
class Halves:
    """A site on one half.

    Attributes:
        axes: nodes of the site that compute one half, in graph order, and along which axis.
        entries: values of both halves, and an axis, to slice for those who take half of them.
    """

    axes: dict[fx.Node, int] = field(default_factory=dict)
    entries: dict[tuple[fx.Node, int], list[fx.Node]] = field(default_factory=dict)


def halves_of(site: Site, inside: Sequence[fx.Node], followed: Followed) -> Halves:
    """Return what computes one half of a site's exits.

    Args:
        site: which.
        inside: its nodes in graph order.
        followed: where the values of the graph hold the batch.

    Raises:
        PassError: if the exits don't hold the halves outermost on their first axis, or an
            operator in the site mixes them, or it isn't known what it does with them.
    """
    members = set(inside)
    for node in inside:
        if node in followed.guessed:
            raise followed.guessed[node]
        if node in followed.lost and not any(arg in followed.lost for arg in node.all_input_nodes):
            raise followed.lost[node]
    axes: dict[fx.Node, int] = {}
    taking: dict[fx.Node, dict[fx.Node, int]] = {}
    for node in reversed(inside):
        axis = _axis(site, node, members, taking, followed)
        if axis is None:
            continue
        try:
            taking[node] = _asked(node, axis)
            axes[node] = axis
        except PassError:
            if node in followed.axes:
                raise
            taking.pop(node, None)  # the same in both halves: computed whole, and sliced
    return _ordered(inside, axes, taking)


def _ordered(
    inside: Sequence[fx.Node],
    axes: dict[fx.Node, int],
    taking: dict[fx.Node, dict[fx.Node, int]],
) -> Halves:
    halves = Halves({node: axes[node] for node in inside if node in axes})
    for node in halves.axes:
        for source, axis in taking[node].items():
            if source not in axes:
                halves.entries.setdefault((source, axis), []).append(node)
    return halves


def _axis(
    site: Site,
    node: fx.Node,
    members: set[fx.Node],
    taking: dict[fx.Node, dict[fx.Node, int]],
    followed: Followed,
) -> int | None:
    """Return the axis along which a node has to compute one half, None if it computes all."""
    axes = {taking[user][node] for user in node.users if node in taking.get(user, {})}
    if any(user not in members for user in node.users):
        if followed.axes.get(node) != 0:
            raise PassError(
                f"site {site.name}: {node.name} doesn't hold the halves outermost on its first "
                "axis: use a method without asc there"
            )
        axes.add(0)
    elif not node.users and node in followed.axes:
        axes.add(followed.axes[node])
    whole = [
        user
        for user in node.users
        if node not in taking.get(user, {}) and _counts(user, node, members)
    ]
    if len(axes) == 1 and not whole:
        return axes.pop()
    if axes and node in followed.axes:
        raise PassError(
            f"site {site.name}: {node.name} is needed of both halves: use a method without asc "
            "there"
        )
    return None


def _counts(user: fx.Node, node: fx.Node, members: set[fx.Node]) -> bool:
    """Whether a user inside the site reads a node's values."""
    return user in members and bool(user.users) and not indifferent(user, node)


def _asked(node: fx.Node, axis: int) -> dict[fx.Node, int]:
    """Return of which arguments half is needed, and along which axis."""
    found = {source: asked(node, source, axis) for source in carriers(node)}
    return {source: at for source, at in found.items() if at is not None}
