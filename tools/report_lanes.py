"""Draw what goes by step as lanes over one axis: the heat map, multiply-adds, latency.

A lane is an inline SVG whose x unit is a step; it is stretched to the width there is, so that the
lanes stay aligned, and lines are drawn at their own width whatever the stretch. Words stand beside
it as HTML, which is never stretched.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from .report_colours import METHODS, STYLES
from .report_data import Facts
from .report_extras import Latency
from .report_ticks import round_ticks
from .report_words import label_parts, milliseconds, quantity

__all__ = ["heat_map", "lanes", "latency_lane", "least_squares", "legend", "work_lane"]

MAP_PX = 760
ROW_PX = (8, 30)
LABEL_PX = 13
FINE = 80
"""More steps than this have thinner gaps between their cells."""
LONG, SHORT = 34, 15
"""Letters of a label that fit, on wide screens and on narrow ones."""
BAR = (0.1, 0.8)
"""Where in its step a bar begins, and how wide it is."""
REST = "rest"


def legend(facts: Facts) -> str:
    """Return the methods with their colours, meanings and shares of all cells."""
    items = (
        f'<li data-method="{number}"><i class="swatch m{number}"></i>'
        f"<div><b>{escape(name)}</b> <span>{facts.share(name):.0%}</span>"
        f"<small>{escape(STYLES[name].words)}</small></div></li>"
        for number, name in enumerate(METHODS)
    )
    return f'<ul class="legend" aria-label="methods and their shares">{"".join(items)}</ul>'


def lanes(facts: Facts, *inner: str) -> str:
    """Return lanes, and what stands between them, beside a gutter as wide as the sites' labels."""
    labels = label_parts(facts.sites)
    long, short = (
        max(sum(len(text) for text, common in label if full or not common) for label in labels)
        for full in (True, False)
    )
    style = f"--long:{min(long, LONG)};--short:{min(short, SHORT)};--steps:{facts.steps}"
    return f'<div class="lanes" style="{style}">{"".join(inner)}</div>'


def heat_map(facts: Facts) -> str:
    """Return the plan as a map: a column a step, a row a site, a colour a method."""
    rows, steps = len(facts.sites), facts.steps
    low, high = ROW_PX
    row_px = max(low, min(high, MAP_PX // rows))
    cells = {number: _cells(facts, method) for number, method in enumerate(METHODS)}
    paths = "".join(f'<path class="m{number}" d="{d}"/>' for number, d in cells.items() if d)
    lines = "".join(f"M{x} 0v{rows}" for x in range(1, steps))
    lines += "".join(f"M0 {y}h{steps}" for y in range(1, rows))
    gap = "gap fine" if steps > FINE else "gap"
    svg = _svg(steps, rows, rows * row_px, f'{paths}<path class="{gap}" d="{lines}"/>')
    title = f"Methods of {rows} sites over {steps} steps; arrow keys move from cell to cell"
    plot = (
        f'<div class="plot map" data-lane="map" tabindex="0" role="application" '
        f'aria-roledescription="heat map" aria-label="{title}">{svg}<i class="cell"></i></div>'
    )
    return _lane(_site_labels(facts.sites, row_px), plot, steps)


def _cells(facts: Facts, method: str) -> str:
    """Return the path of all cells of a method, neighbouring steps as one rectangle."""
    parts = []
    for row in range(len(facts.sites)):
        column = 0
        for found, run in groupby(step[row] for step in facts.methods):
            width = len(list(run))
            if found == method:
                parts.append(f"M{column} {row}h{width}v1h-{width}z")
            column += width
    return "".join(parts)


def _site_labels(sites: Sequence[str], row_px: int) -> str:
    every = -(-LABEL_PX // row_px) if row_px < LABEL_PX else 1
    items = []
    for number, parts in enumerate(label_parts(sites)):
        shown = "".join(
            f"<span>{escape(text)}</span>" if common else escape(text) for text, common in parts
        )
        words = shown if number % every == 0 else ""
        name = escape(sites[number])
        items.append(f'<li title="{name}" style="height:{row_px}px">{words}</li>')
    return f'<ol class="sites">{"".join(items)}</ol>'


def work_lane(facts: Facts) -> str:
    """Return the multiply-adds of every step as bars, stacked by method where that is known."""
    whole = facts.costs.whole if facts.costs else None
    top = max(*facts.totals, whole or 0, 1) * 1.06
    layers = _layers(facts)
    base = [0] * facts.steps
    shapes = []
    for name, values in layers.items():
        shapes.append(f'<path class="{name}" d="{_bars(base, values, top)}"/>')
        base = [low + value for low, value in zip(base, values, strict=True)]
    if whole:
        shapes.append(f'<path class="level" d="M0 {_y(whole, top)}h{facts.steps}"/>')
    ticks = _ticks(whole or max(facts.totals))
    svg = _svg(facts.steps, 100, 130, _grid(ticks, top, facts.steps) + "".join(shapes))
    plot = f'<div class="plot" data-lane="work">{svg}</div>'
    return _lane(_marks((tick / top, quantity(tick)) for tick in ticks), plot, facts.steps)


def _layers(facts: Facts) -> dict[str, list[int]]:
    """Return class and values of each layer of the bars, lowest first."""
    if facts.costs is None:
        return {"bar": list(facts.totals)}
    layers = {REST: list(facts.costs.rests)}
    for number, method in enumerate(METHODS):
        values = [
            sum(cost for found, cost in zip(row, spent, strict=True) if found == method)
            for row, spent in zip(facts.methods, facts.costs.spent, strict=True)
        ]
        if any(values):
            layers[f"m{number}"] = values
    return layers


def latency_lane(facts: Facts, timed: Mapping[str, Latency], ms_each: float) -> str:
    """Return measured latency as bars with quartiles, and what multiply-adds predict as marks.

    Args:
        facts: of a bundle.
        timed: latency by bucket.
        ms_each: milliseconds that a multiply-add is predicted to take.
    """
    assert facts.buckets is not None
    measured = [timed[name] for name in facts.buckets]
    predicted = [total * ms_each for total in facts.totals]
    highest = max(max(entry.high_ms, entry.median_ms) for entry in measured)
    top = max(highest, *predicted, 1e-9) * 1.06
    bars = _bars([0.0] * facts.steps, [entry.median_ms for entry in measured], top)
    spread = "".join(
        f"M{step + 0.5} {_y(entry.low_ms, top)}V{_y(entry.high_ms, top)}"
        for step, entry in enumerate(measured)
    )
    guesses = "".join(f"M{step} {_y(value, top)}h1" for step, value in enumerate(predicted))
    shapes = (
        f'<path class="bar" d="{bars}"/><path class="spread" d="{spread}"/>'
        f'<path class="predicted" d="{guesses}"/>'
    )
    ticks = _ticks(highest)
    svg = _svg(facts.steps, 100, 130, _grid(ticks, top, facts.steps) + shapes)
    plot = f'<div class="plot" data-lane="latency">{svg}</div>'
    words = ["0", *(f"{tick:g} ms" for tick in ticks[1:-1]), milliseconds(highest)]
    marks = _marks(zip((tick / top for tick in ticks), words, strict=True))
    return _lane(marks, plot, facts.steps)


def least_squares(totals: Sequence[int], measured: Sequence[float]) -> float:
    """Return the milliseconds a multiply-add that fit the measured steps best, through zero."""
    squares = sum(total**2 for total in totals)
    products = sum(total * value for total, value in zip(totals, measured, strict=True))
    return products / squares if squares else 0.0


def _bars(base: Iterable[float], values: Iterable[float], top: float) -> str:
    start, width = BAR
    return "".join(
        f"M{step + start} {_y(low, top)}h{width}V{_y(low + value, top)}h-{width}z"
        for step, (low, value) in enumerate(zip(base, values, strict=True))
        if value
    )


def _y(value: float, top: float) -> str:
    return f"{100 - 100 * value / top:.3f}".rstrip("0").rstrip(".")


def _ticks(highest: float) -> list[float]:
    """Return 0, round numbers, and the highest value, which no other one stands close to."""
    if not highest:
        return [0.0]
    return [tick for tick in round_ticks([0, highest]) if tick < 0.85 * highest] + [highest]


def _grid(ticks: Sequence[float], top: float, steps: int) -> str:
    """Return faint lines at the round ones of an axis's ticks."""
    lines = "".join(f"M0 {_y(tick, top)}h{steps}" for tick in ticks[1:-1])
    return f'<path class="grid" d="{lines}"/>'


def _marks(marks: Iterable[tuple[float, str]]) -> str:
    spans = (
        f'<span style="bottom:{100 * share:.2f}%">{escape(words)}</span>' for share, words in marks
    )
    return f'<div class="marks">{"".join(spans)}</div>'


def _svg(width: int, height: int, height_px: int, inner: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="height:{height_px}px">{inner}</svg>'
    )


def _lane(gutter: str, plot: str, steps: int) -> str:
    return (
        f'<div class="lane"><div class="gutter">{gutter}</div><div>{plot}{_axis(steps)}</div></div>'
    )


def _axis(steps: int) -> str:
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if steps / n <= 25)
    spans = (
        f"<span{'' if step % (5 * every) == 0 else ' class=minor'} "
        f'style="left:{100 * (step + 0.5) / steps:.3f}%">{step}</span>'
        for step in range(0, steps, every)
    )
    return f'<div class="axis" aria-hidden="true">{"".join(spans)}</div>'
