"""The operator `ditc::window_attention`: attention in which a query sees a window of keys."""

from functools import lru_cache

import torch

from .window import Window
from .window_kernel import attend, runs

__all__ = ["WINDOW_ATTENTION", "attended_like", "windowed_attention", "windowed_by_rows"]

ROWS = 32, 128
"""Queries that are computed at once, at least and at most: with as many as the radius there is
little behind the mask, fewer take longer than that saves, and more take memory for scores."""


def windowed_by_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    radius: int,
    block: int,
    scale: float,
) -> torch.Tensor:
    """Compute some rows at a time under a mask: what every device can."""
    window = Window(radius, block)
    tokens = query.shape[-2]
    low, high = ROWS
    rows = max(1, min(max(radius, low), high) // block) * block
    mask = None if rows == block else _added(window, rows, query.device, query.dtype)
    parts = []
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        first, last = window.keys_of(start, stop, tokens)
        seen = slice(first + radius - start, last + radius - start)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[..., start:stop, :],
                key[..., first:last, :],
                value[..., first:last, :],
                attn_mask=None if mask is None else mask[: stop - start, seen],
                scale=scale,
            )
        )
    return torch.cat(parts, dim=-2)


_window_attention = torch.library.custom_op(
    "ditc::window_attention", windowed_by_rows, mutates_args=()
)


@_window_attention.register_kernel("cuda")
def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    radius: int,
    block: int,
    scale: float,
) -> torch.Tensor:
    if not runs(query):
        return windowed_by_rows(query, key, value, radius, block, scale)
    return attend(query, key, value, Window(radius, block), scale)


def attended_like(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *options: object
) -> torch.Tensor:
    """Return what has the shape and dtype of an attention's output, whatever the window."""
    del key, options
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


_window_attention.register_fake(attended_like)

WINDOW_ATTENTION = torch.ops.ditc.window_attention.default
"""The operator as it stands in a graph: query, key, value, radius, block, scale."""


@lru_cache(maxsize=16)
def _added(window: Window, rows: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to scores, `[rows, rows + 2 * radius]`: keys begin a radius before."""
    queries = torch.arange(rows, device=device)[:, None] // window.block
    keys = torch.arange(-window.radius, rows + window.radius, device=device)[None, :]
    near = (queries - keys // window.block).abs() <= window.radius // window.block
    return torch.zeros(near.shape, device=device, dtype=dtype).masked_fill(~near, float("-inf"))


def windowed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: Window,
    scale: float | None = None,
) -> torch.Tensor:
    """Return `softmax(scale · q kᵀ) v` with each query's softmax over its window alone.

    Args:
        query: `[..., tokens, head_dim]`.
        key: `[..., tokens, head_dim]`.
        value: `[..., tokens, value_dim]`.
        window: which keys a query sees.
        scale: factor on query · key, `head_dim ** -0.5` if None.

    Returns:
        `[..., tokens, value_dim]` in the dtype of the query.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    result: torch.Tensor = WINDOW_ATTENTION(query, key, value, window.radius, window.block, factor)
    return result
