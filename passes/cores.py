"""Find attention proper: the fused operator, or a softmax between two matrix products."""

from dataclasses import dataclass

import torch
from torch import fx

from .graphs import shape_of
from .key_masks import attention_mask, mask_factors
from .operators import CASTS, MATMUL, SDPA, SOFTMAX

__all__ = ["Core", "find_core"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Core:
    """The attention proper, fused or written out.

    Attributes:
        output: node whose value is the attention's.
        query: `[..., tokens, head_dim]`.
        key: `[..., context_tokens, head_dim]`.
        value: `[..., context_tokens, value_dim]`.
        scale: factor on query · key.
        obstacle: what makes it more than an attention of all to all, else empty.
    """

    output: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    obstacle: str


def find_core(node: fx.Node) -> Core | None:
    """Return the attention whose output a node is, None if it is none's."""
    return _fused(node) or _written_out(node)


def _fused(node: fx.Node) -> Core | None:
    if node.target is not SDPA:
        return None
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments = dict(zip(names, node.args, strict=False))
    arguments.update(node.kwargs)
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    assert isinstance(value, fx.Node)
    scale = arguments.get("scale")
    factor = float(scale) if isinstance(scale, int | float) else shape_of(query)[-1] ** -0.5
    obstacle = ""
    mask = attention_mask(node)
    if mask is not None and mask_factors(mask, shape_of(key)[-2]) is None:
        obstacle = "its attention has a mask for each query"
    elif arguments.get("is_causal"):
        obstacle = "its attention is causal"
    elif arguments.get("dropout_p"):
        obstacle = "its attention has dropout"
    return Core(node, query, key, value, factor, obstacle)


def _written_out(node: fx.Node) -> Core | None:
    if node.target not in SOFTMAX:
        return None
    scores = _through(node.args[0], CASTS)
    axis = node.args[1]
    if scores is None or axis not in (-1, len(shape_of(node)) - 1):
        return None
    product = _only_user(node, (*CASTS, aten.clone.default))
    if product is None or product.target not in MATMUL:
        return None
    if _through(product.args[0], (*CASTS, aten.clone.default)) is not node:
        return None
    return _scored(product, scores)


def _scored(product: fx.Node, scores: fx.Node) -> Core | None:
    """Walk from softmax's argument back to query · keyᵀ, collecting scale and masks."""
    scale, obstacle, node = 1.0, "", scores
    while node.target not in MATMUL:
        if node.target is aten.baddbmm.default:
            beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
            assert isinstance(alpha, int | float)
            obstacle = obstacle if beta == 0 else "its attention has a mask"
            query, transposed = node.args[1], node.args[2]
            return _core(product, query, transposed, scale * float(alpha), obstacle)
        first, second = node.args[0], node.args[1] if len(node.args) > 1 else None
        if node.target is aten.mul.Tensor and isinstance(second, int | float):
            scale *= second
        elif node.target is aten.div.Tensor and isinstance(second, int | float):
            scale /= second
        elif node.target is aten.add.Tensor:
            obstacle = "its attention has a mask"
        elif node.target not in CASTS:
            return None
        if not isinstance(first, fx.Node):
            return None
        node = first
    return _core(product, node.args[0], node.args[1], scale, obstacle)


def _core(
    product: fx.Node, query: object, transposed: object, scale: float, obstacle: str
) -> Core | None:
    """Build the core from query and keyᵀ; keyᵀ has to be a transposed view of the keys."""
    value = product.args[1]
    if not (isinstance(query, fx.Node) and isinstance(transposed, fx.Node)):
        return None
    if not isinstance(value, fx.Node) or not _swaps_last_axes(transposed):
        return None
    key = transposed.args[0]
    assert isinstance(key, fx.Node)
    return Core(product, query, key, value, scale, obstacle)


def _swaps_last_axes(node: fx.Node) -> bool:
    rank = len(shape_of(node))
    if node.target is aten.transpose.int:
        axes = {int(axis) % rank for axis in node.args[1:3] if isinstance(axis, int)}
        return axes == {rank - 1, rank - 2}
    if node.target is aten.permute.default:
        order = [*range(rank - 2), rank - 1, rank - 2]
        given = node.args[1]
        return isinstance(given, list | tuple) and [int(a) % rank for a in given] == order  # type: ignore[arg-type]
    return False


def _through(value: object, skipped: tuple[object, ...]) -> fx.Node | None:
    while isinstance(value, fx.Node) and value.target in skipped:
        value = value.args[0]
    return value if isinstance(value, fx.Node) else None


def _only_user(node: fx.Node, skipped: tuple[object, ...]) -> fx.Node | None:
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in skipped:
            return user
        node = user
    return None
