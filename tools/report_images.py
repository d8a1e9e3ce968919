"""Show images before and after: a slider over one of them, and all of them to choose from."""

import base64
import io
import math
import statistics
from html import escape

from PIL import Image

from .report_extras import Demo, Pixels
from .report_words import decibels

__all__ = ["comparison_html"]

SMALL = 128
"""Images of fewer pixels a side are enlarged with hard edges."""


def comparison_html(demo: Demo) -> str:
    """Return the slider and the images as HTML, every image as a PNG in it."""
    assert demo.before is not None
    assert demo.after is not None
    befores, afters = ([_data_uri(image) for image in side] for side in (demo.before, demo.after))
    height, width = demo.before.shape[1:3]
    hard = " hard" if max(height, width) < SMALL else ""
    buttons = "".join(
        _thumb(number, name, before, after, decibels(psnr))
        for number, (name, before, after, psnr) in enumerate(
            zip(demo.names, befores, afters, demo.psnr_db, strict=True)
        )
    )
    return (
        f'<div class="images{hard}"><div class="stage"><div class="frame" '
        f'style="aspect-ratio:{width}/{height}"><img class="before" src="{befores[0]}" '
        f'alt="uncompressed image"><img class="after" src="{afters[0]}" alt="compressed image">'
        '<i class="split"></i><input type="range" min="0" max="100" step="1" value="50" '
        'aria-label="how much of the uncompressed image shows, in percent"></div>'
        '<p class="sides"><span>uncompressed</span><span>compressed</span></p>'
        f'<p class="caption" id="caption">{_caption(demo.names[0], decibels(demo.psnr_db[0]))}</p>'
        f'</div><div><p class="hint">{_spread(demo)}</p><div class="thumbs">{buttons}</div></div>'
        "</div>"
    )


def _thumb(number: int, name: str, before: str, after: str, psnr: str) -> str:
    pressed = "true" if number == 0 else "false"
    caption = _caption(name, psnr)
    return (
        f'<button type="button" aria-pressed="{pressed}" aria-label="{caption}" '
        f'title="{caption}"><img src="{before}" alt=""><img src="{after}" alt=""></button>'
    )


def _caption(name: str, psnr: str) -> str:
    return f"image {escape(name)} · PSNR {psnr}"


def _spread(demo: Demo) -> str:
    worst = min(range(len(demo.psnr_db)), key=lambda number: demo.psnr_db[number])
    finite = [value for value in demo.psnr_db if math.isfinite(value)]
    left_out = "" if demo.of == len(demo.names) else f" The first {len(demo.names)} of {demo.of}."
    if not finite:
        return f"Each pair: uncompressed, compressed. All are equal.{left_out}"
    middle = decibels(statistics.median(demo.psnr_db))
    return (
        f"Each pair: uncompressed, compressed. PSNR: median {middle}, lowest "
        f"{decibels(demo.psnr_db[worst])}, image “{escape(demo.names[worst])}”.{left_out}"
    )


def _data_uri(image: Pixels) -> str:
    grey = (image == image[..., :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
