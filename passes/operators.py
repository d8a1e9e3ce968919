"""Kinds of aten operators, as far as finding and rewriting sites needs them."""

import operator

import torch
from torch import fx

__all__ = [
    "CASTS",
    "CONVOLUTIONS",
    "LAYOUT",
    "LINEAR",
    "MATMUL",
    "MOVES",
    "REARRANGING",
    "SDPA",
    "SOFTMAX",
    "activation_of",
    "is_pointwise",
    "weight_of",
]

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default
LINEAR = (aten.linear.default, aten.addmm.default, aten.mm.default)
MATMUL = (aten.matmul.default, aten.bmm.default)
SOFTMAX = (aten.softmax.int, aten._softmax.default)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
"""By the axes of what they run along: one, two, three."""
CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default)
VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.transpose.int,
    aten.permute.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    operator.getitem,
)
"""Operators that show the elements of a value otherwise, or some of them."""
REARRANGING = (
    aten.squeeze.default,
    aten.squeeze.dims,
    aten.expand.default,
    aten.expand_as.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.roll.default,
    aten.flip.default,
    aten.t.default,
    aten.pixel_shuffle.default,
)
"""More that only move elements."""
LAYOUT = (*VIEWS, aten.contiguous.default, aten.clone.default, *CASTS)
MOVES = (
    *VIEWS,
    *REARRANGING,
    aten.narrow.default,
    aten.cat.default,
    aten.stack.default,
    aten.movedim.int,
    aten.select_scatter.default,
    aten.slice_scatter.default,
)
"""Operators that only move elements, whatever these are."""


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the node's value comes from one element of each argument."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.pointwise in tags


def activation_of(node: fx.Node) -> fx.Node:
    """Return what a linear node projects."""
    position = 1 if node.target is aten.addmm.default else 0
    value = node.args[position]
    assert isinstance(value, fx.Node)
    return value


def weight_of(node: fx.Node) -> fx.Node:
    """Return the weight of a linear node."""
    position = 2 if node.target is aten.addmm.default else 1
    value = node.args[position]
    assert isinstance(value, fx.Node)
    return value
