"""In which precision operators compute: which take halves, which need full width, which follow."""

import torch

from .operators import CONVOLUTIONS, LAYOUT, LINEAR, REARRANGING, SDPA, SOFTMAX

__all__ = ["FOLLOWS", "JOINS", "NARROW", "NORMS", "SUMS", "WIDE"]

aten = torch.ops.aten

NARROW = (
    *LINEAR,
    *CONVOLUTIONS,
    aten.conv_transpose1d.default,
    aten.embedding.default,
    SDPA,
)
"""Operators that compute in half precision: they multiply by weights, and sum in full width."""

NORMS = (aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default)
"""Norms in one operator: they keep their statistics in full width, whatever they are given."""

WIDE = (
    *SOFTMAX,
    aten.pow.Tensor_Scalar,
    aten.pow.Scalar,
    aten.pow.Tensor_Tensor,
    aten.exp.default,
    aten.log.default,
    aten.sin.default,
    aten.cos.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.square.default,
)
"""Pointwise operators, and the softmax, that are computed in full width wherever they stand."""

SUMS = (aten.add.Tensor, aten.sub.Tensor)
"""Operators in which a table, as of positions, takes the precision of what it is added to."""

JOINS = (
    aten.cat.default,
    aten.stack.default,
    aten.index_put.default,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.copy.default,
)
"""Operators that put tensors beside each other: all are halves if one is."""

FOLLOWS = (
    *LAYOUT,
    *NORMS,
    *REARRANGING,
    aten.index_select.default,
    aten.index.Tensor,
    aten.gather.default,
    aten.constant_pad_nd.default,
    aten.pad.default,
    aten.type_as.default,
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
)
"""Operators that compute in the precision of their first argument."""
