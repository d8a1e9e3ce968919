"""The operator `ditc::arrow_attention`: a window among image tokens, full rows and columns of text.

The name is that of DiTFastAttnV2 (arXiv 2503.22796): what text tokens see, and what sees them,
drawn as a matrix, is the head of an arrow along the window's diagonal.
"""

import torch

from .attention import attended_like, windowed_attention
from .window import Window
from .window_kernel import attend, runs

__all__ = ["ARROW_ATTENTION", "arrow_attention", "image_range"]

ROWS = 128
"""Queries that are computed at once; bounds the memory for scores."""


def _by_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    radius: int,
    block: int,
    scale: float,
    text_start: int,
    text_stop: int,
) -> torch.Tensor:
    """Compute some rows at a time under a mask: what every device can."""
    window = Window(radius, block)
    tokens = query.shape[-2]
    first, last = image_range(tokens, (text_start, text_stop))
    image = query[..., first:last, :]
    rows = max(1, ROWS // block) * block
    parts = []
    for start in range(0, last - first, rows):
        stop = min(start + rows, last - first)
        left, right = window.keys_of(start, stop, last - first)
        seen = torch.cat(
            [
                torch.arange(text_start, text_stop, device=query.device),
                torch.arange(first + left, first + right, device=query.device),
            ]
        )
        queries = torch.arange(start, stop, device=query.device)[:, None] // block
        keys = (seen - first)[None, :]
        near = (queries - keys.div(block, rounding_mode="floor")).abs() <= radius // block
        text = ((seen >= text_start) & (seen < text_stop))[None, :]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                image[..., start:stop, :],
                key[..., seen, :],
                value[..., seen, :],
                attn_mask=near | text,
                scale=scale,
            )
        )
    words = torch.nn.functional.scaled_dot_product_attention(
        query[..., text_start:text_stop, :], key, value, scale=scale
    )
    ordered = [words, *parts] if text_start == 0 else [*parts, words]
    return torch.cat(ordered, dim=-2)


_arrow_attention = torch.library.custom_op("ditc::arrow_attention", _by_rows, mutates_args=())


@_arrow_attention.register_kernel("cuda")
def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    radius: int,
    block: int,
    scale: float,
    text_start: int,
    text_stop: int,
) -> torch.Tensor:
    if not runs(query):
        return _by_rows(query, key, value, radius, block, scale, text_start, text_stop)
    text = (text_start, text_stop)
    return attend(query, key, value, Window(radius, block), scale, text)


_arrow_attention.register_fake(attended_like)

ARROW_ATTENTION = torch.ops.ditc.arrow_attention.default
"""The operator as it stands in a graph: as a window attention, then where the text is."""


def image_range(tokens: int, text: tuple[int, int]) -> tuple[int, int]:
    """Return the half-open range of image tokens beside text at one end of the sequence."""
    return (text[1], tokens) if text[0] == 0 else (0, text[0])


def arrow_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: Window,
    text: tuple[int, int],
    scale: float | None = None,
) -> torch.Tensor:
    """Return attention in which image tokens see text and a window of image tokens, text all.

    Args:
        query: `[..., tokens, head_dim]`.
        key: `[..., tokens, head_dim]`.
        value: `[..., tokens, value_dim]`.
        window: which image tokens an image token sees, counted among image tokens alone.
        text: half-open range of text tokens, at one end of the sequence; may be empty.
        scale: factor on query · key, `head_dim ** -0.5` if None.

    Returns:
        `[..., tokens, value_dim]` in the dtype of the query.
    """
    if text[0] == text[1]:
        return windowed_attention(query, key, value, window, scale)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    result: torch.Tensor = ARROW_ATTENTION(
        query, key, value, window.radius, window.block, factor, *text
    )
    return result
