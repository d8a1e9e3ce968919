"""What the rules of `token_rules` are told and answer: where a node's values hold image tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import fx

from ditc.runtime.errors import PassError

from .graphs import given
from .token_axis import TokenAxis

__all__ = ["Axes", "Held", "MixedError", "Rule", "Step", "dim_of", "mixed", "source_of"]

Held = TokenAxis | tuple[TokenAxis | None, ...] | None
"""Where a node holds image tokens: on an axis, each of its parts on one, or nowhere."""
Axes = Mapping[fx.Node, Held]
Side = tuple[fx.Node, TokenAxis]


class MixedError(PassError):
    """An operator needs tokens in the model's own order."""


@dataclass(frozen=True)
class Step:
    """What following an operator found.

    Attributes:
        held: where its value holds the tokens.
        sides: operands that hold something for each token, and where; they need the same order.
    """

    held: Held
    sides: tuple[Side, ...] = ()


Rule = Callable[[fx.Node, Axes], Step]
"""Follows the tokens through a call, of which at least one argument holds some."""


def mixed(node: fx.Node) -> NoReturn:
    """Say that an operator needs tokens in the model's own order."""
    raise MixedError(f"{node.target} takes image tokens in the model's own order")


def source_of(node: fx.Node, axes: Axes) -> tuple[fx.Node, TokenAxis]:
    """Return the first argument and its axis; only it may hold tokens."""
    source = node.args[0]
    held = axes.get(source) if isinstance(source, fx.Node) else None
    if (
        not isinstance(held, TokenAxis)
        or sum(axes.get(a) is not None for a in node.all_input_nodes) > 1
    ):
        mixed(node)
    assert isinstance(source, fx.Node)
    return source, held


def dim_of(node: fx.Node, position: int, rank: int, default: int = 0) -> int:
    """Return an argument that is the number of an axis, counted from the front."""
    found = given(node, position, "dim", default)
    if not isinstance(found, int):
        mixed(node)
    return found % rank
