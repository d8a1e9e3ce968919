"""Draw the plan's heat map as a PNG, on light ground."""

import io

from PIL import Image, ImageDraw, ImageFont

from .report_colours import METHODS, STYLES
from .report_data import Facts
from .report_words import site_pattern

__all__ = ["heat_map_png"]

INK, SOFT, GROUND = "#1b1f26", "#5d6571", "#ffffff"
SMALL, MEDIUM, LARGE = 20, 24, 36
EDGE, TOP, BOTTOM, GAP = 48, 158, 150, 3
MAP_PX = (1500, 1200)
CELL_PX = (8, 60)
MANY = 2000
"""More steps or sites than this are drawn a pixel each."""


def heat_map_png(facts: Facts) -> bytes:
    """Return the heat map as PNG: a column a step, a row a site, a colour a method."""
    cell = (_cell_px(MAP_PX[0], facts.steps), _cell_px(MAP_PX[1], len(facts.sites)))
    labels = [_elided(site) for site in facts.sites]
    left = EDGE + 20 + max(_width(label, SMALL) for label in labels)
    bottom = TOP + cell[1] * len(facts.sites)
    title, note = _title(facts)
    width = max(
        left + cell[0] * facts.steps + EDGE,
        EDGE * 2 + _width(title, LARGE),
        EDGE * 2 + _width(note, MEDIUM),
        EDGE + sum(_width(entry, MEDIUM) + 84 for entry in _entries(facts)),
    )
    picture = Image.new("RGB", (width, bottom + BOTTOM), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((EDGE, EDGE - 8), title, INK, _font(LARGE))
    draw.text((EDGE, EDGE + 44), note, SOFT, _font(MEDIUM))
    for row in range(0, len(labels), -(-24 // cell[1])):
        y = TOP + (row + 0.5) * cell[1] - GAP / 2
        draw.text((left - 14, y), labels[row], SOFT, _font(SMALL), anchor="rm")
    for step in range(0, facts.steps, -(-44 // cell[0])):
        x = left + (step + 0.5) * cell[0] - GAP / 2
        draw.text((x, bottom + 10), str(step), SOFT, _font(SMALL), anchor="ma")
    _draw_cells(draw, facts, (left, TOP), cell)
    _draw_legend(draw, facts, bottom + 76)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_cells(
    draw: ImageDraw.ImageDraw, facts: Facts, corner: tuple[int, int], cell: tuple[int, int]
) -> None:
    gap = GAP if min(cell) > 2 * GAP else 0
    for step, methods in enumerate(facts.methods):
        x = corner[0] + step * cell[0]
        for row, method in enumerate(methods):
            y = corner[1] + row * cell[1]
            box = (x, y, x + cell[0] - 1 - gap, y + cell[1] - 1 - gap)
            draw.rectangle(box, STYLES[method].light)


def _draw_legend(draw: ImageDraw.ImageDraw, facts: Facts, y: int) -> None:
    x = EDGE
    for name, entry in zip(METHODS, _entries(facts), strict=True):
        draw.rectangle((x, y, x + 25, y + 25), STYLES[name].light)
        draw.text((x + 36, y + 13), entry, INK, _font(MEDIUM), anchor="lm")
        x += _width(entry, MEDIUM) + 84


def _entries(facts: Facts) -> list[str]:
    return [f"{name} {facts.share(name):.0%}" for name in METHODS]


def _title(facts: Facts) -> tuple[str, str]:
    model = _elided(facts.model.rpartition(".")[2], 60)
    pattern = site_pattern(facts.sites)
    sites = f"{len(facts.sites)} sites" + (f" {_elided(pattern, 60)}" if pattern else "")
    left = []
    if facts.costs is not None:
        left.append(f"{facts.costs.attention_left:.1%} of attention left")
        left.append(f"{facts.costs.model_left:.1%} of the model")
    note = ", ".join((*left, f"{facts.steps} steps", sites))
    return f"{model}, {_elided(facts.source)}", note


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _cell_px(room: int, count: int) -> int:
    low, high = CELL_PX if count <= MANY else (1, 1)
    return max(low, min(high, room // count))


def _elided(text: str, limit: int = 40) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
