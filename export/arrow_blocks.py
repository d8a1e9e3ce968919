"""Arrow windows as dense blocks: image queries see text and the image keys near them, text all.

As in `blocks`, each block of neighbouring image queries attends to one run of keys, with text in
front; a mask is added only where a block's queries don't all see the same keys.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.window import Window
from ditc.runtime.errors import LoweringError

from .blocks import query_block

__all__ = ["blocked_arrow_attention", "check_text", "text_and_image"]


def blocked_arrow_attention(
    query: Tensor, key: Tensor, value: Tensor, window: Window, text: tuple[int, int], scale: float
) -> Tensor:
    """Attend within a window of image tokens and to all text; text attends to everything.

    Equal to attention under the arrow's mask up to rounding. Pure and traceable for static
    shapes.

    Args:
        query: [..., tokens, head_dim], floating point; engines get four axes, whatever these are.
        key: as `query`.
        value: [..., tokens, value_dim], of the query's dtype.
        window: which image tokens an image token sees, counted among image tokens alone.
        text: half-open range of text tokens, at one end of the sequence, not empty.
        scale: factor on the scores.

    Returns:
        [..., tokens, value_dim], of the query's dtype.

    Raises:
        LoweringError: if keys or values don't have as many tokens as the queries, or text isn't
            at one end.
    """
    tokens = query.shape[-2]
    if key.shape[-2] != tokens or value.shape[-2] != tokens:
        raise LoweringError(
            f"arrow attention has {tokens} queries, {key.shape[-2]} keys and {value.shape[-2]} "
            "values, expected as many of each"
        )
    check_text(text, tokens)
    if query.dim() != 4:
        four = [part.reshape(1, -1, *part.shape[-2:]) for part in (query, key, value)]
        output = blocked_arrow_attention(four[0], four[1], four[2], window, text, scale)
        return output.reshape(*query.shape[:-2], *output.shape[-2:])
    words, image = text_and_image(query, text)
    told = functional.scaled_dot_product_attention(words, key, value, scale=scale)
    seen = _image(image, text_and_image(key, text), text_and_image(value, text), window, scale)
    return torch.cat([told, seen] if text[0] == 0 else [seen, told], dim=2)


def check_text(text: tuple[int, int], tokens: int) -> None:
    """Refuse text that isn't at one end of a sequence.

    Raises:
        LoweringError: telling both.
    """
    start, stop = text
    if not 0 <= start < stop <= tokens or (start != 0 and stop != tokens):
        raise LoweringError(f"text {start} to {stop} isn't at one end of {tokens} tokens")


def text_and_image(source: Tensor, text: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the text tokens and the image tokens of `[batch, heads, tokens, size]`."""
    sizes = [text[1], source.shape[2] - text[1]]
    if text[0] == 0:
        words, image = torch.split(source, sizes, dim=2)
        return words, image
    image, words = torch.split(source, [text[0], source.shape[2] - text[0]], dim=2)
    return words, image


def _image(
    query: Tensor,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    window: Window,
    scale: float,
) -> Tensor:
    """Return the attention of image tokens, block by block."""
    tokens = query.shape[2]
    size = min(query_block(tokens, window), tokens)
    outputs = []
    for number in range(math.ceil(tokens / size)):
        start, stop = number * size, min((number + 1) * size, tokens)
        first, last = window.keys_of(start, stop, tokens)
        ends = (window.keys_of(i, i + 1, tokens) for i in (start, stop - 1))
        uniform = all(keys == (first, last) for keys in ends)
        words = key[0].shape[2]
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:stop],
                torch.cat([key[0], key[1][:, :, first:last]], dim=2),
                torch.cat([value[0], value[1][:, :, first:last]], dim=2),
                attn_mask=None
                if uniform
                else _mask((start, stop), (first, last), words, window, query),
                scale=scale,
            )
        )
    return torch.cat(outputs, dim=2)


def _mask(
    rows: tuple[int, int], columns: tuple[int, int], words: int, window: Window, like: Tensor
) -> Tensor:
    """Return what to add to the scores, [rows, words + columns]: 0 where seen.

    Elsewhere the lowest finite number rather than minus infinity, which not every engine's
    softmax takes; beside a real score it weighs exactly 0.
    """
    queries = torch.arange(*rows, device=like.device) // window.block
    keys = torch.arange(*columns, device=like.device) // window.block
    hidden = (queries[:, None] - keys[None, :]).abs() > window.radius // window.block
    added = hidden.to(like.dtype) * torch.finfo(like.dtype).min
    return torch.cat([added.new_zeros(rows[1] - rows[0], words), added], dim=1)
