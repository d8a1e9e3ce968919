"""How operators treat the batch: which keep its axis, which mix values along their last axes."""

import torch

from .operators import CASTS, CONVOLUTIONS, LINEAR, MATMUL, SDPA, SOFTMAX
from .window_nodes import WINDOWED

__all__ = [
    "ALIGNED",
    "DROPS_AXIS",
    "FILLED",
    "INDEXING",
    "KEEPING",
    "MIXED_AXES",
    "ON_AXIS",
    "PADDING",
    "REDUCING",
    "SIZED",
    "WRITING",
]

aten = torch.ops.aten

SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
KEEPING = (
    *LINEAR,
    *CASTS,
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.type_as.default,
    aten.view_as_complex.default,
    aten.view_as_real.default,
    *CONVOLUTIONS,
)
ALIGNED = (SDPA, *MATMUL, aten.baddbmm.default, *WINDOWED, aten.expand_as.default)
"""Operators whose arguments' axes align from the right, as those of pointwise ones do."""
WRITING: dict[object, tuple[int, ...]] = {
    aten.copy.default: (0, 1),
    aten.select_scatter.default: (0, 1),
    aten.slice_scatter.default: (0, 1),
    aten.index_copy.default: (0, 3),
}
"""Operators that write one argument into another, and the places of these two."""
INDEXING: dict[object, tuple[int, ...]] = {aten.embedding.default: (1,)}
"""Operators whose value has the axes of an index in front, and the place of that."""
MIXED_AXES: dict[object, int] = {
    **dict.fromkeys((SDPA, *MATMUL, aten.baddbmm.default, *WINDOWED), 2),
    **{convolution: axes for axes, convolution in enumerate(CONVOLUTIONS, start=2)},
    **dict.fromkeys((*LINEAR, aten.layer_norm.default, aten.rms_norm.default), 1),
}
"""How many of the last axes an operator mixes values along."""

PADDING = (aten.constant_pad_nd.default, aten.pad.default)
ON_AXIS = (
    *SOFTMAX,
    aten.slice.Tensor,
    aten.select.int,
    aten.index_select.default,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.cat.default,
)
FILLED = (
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
)
"""Operators that take no more than a dtype and a device from their argument."""
REDUCING = (aten.mean.dim, aten.sum.dim_IntList, aten.linalg_vector_norm.default)
DROPS_AXIS = (aten.select.int, aten.unbind.int)
