"""Arrow windows as dense blocks: image queries see text and the image keys near them, text all.

As in `blocks`, each block of neighbouring image queries attends to one run of keys, with text in
front, and blocks away from the image's ends attend together.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.window import Window
from ditc.runtime.errors import LoweringError

from .blocks import MOST_SCORES, attend_in_blocks

__all__ = ["blocked_arrow_attention", "check_text", "text_and_image"]


def blocked_arrow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window,
    text: tuple[int, int],
    scale: float,
    most_scores: int = MOST_SCORES,
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
        most_scores: scores that one call may hold.

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
        output = blocked_arrow_attention(
            four[0], four[1], four[2], window, text, scale, most_scores
        )
        return output.reshape(*query.shape[:-2], *output.shape[-2:])
    words, image = text_and_image(query, text)
    told = functional.scaled_dot_product_attention(words, key, value, scale=scale)
    seen = attend_in_blocks(image, key, value, window, text, scale, most_scores)
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
