"""Draw the trade-off between cost and loss over several plans."""

from collections.abc import Sequence
from html import escape

from .report_points import Point
from .report_ticks import round_ticks
from .report_words import milliseconds

__all__ = ["frontier", "pareto_chart"]

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 110, 34, 46
LABEL = 24


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in cost and loss both, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def pareto_chart(points: Sequence[Point], threshold: float | None) -> str:
    """Return the points, the frontier through them, and a ring around the plan at hand.

    Args:
        points: at least one; all in the same unit.
        threshold: δ of the plan at hand, None if it has none.
    """
    measured = points[0].measured
    xs, ys = round_ticks([p.cost for p in points]), round_ticks([p.loss for p in points])

    def place(cost: float, loss: float) -> tuple[float, float]:
        x = LEFT + (cost - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (loss - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    best = frontier(points)
    shapes = []
    for tick in ys:
        _, y = place(xs[0], tick)
        shapes.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        shapes.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in xs:
        x, _ = place(tick, ys[0])
        words = f"{tick:g}" if measured else f"{100 * tick:g} %"
        shapes.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{words}</text>'
        )
    line = "L".join("{} {}".format(*place(p.cost, p.loss)) for p in best)
    shapes.append(f'<path class="front" d="M{line}"/>')
    shapes += [_dot(p, place(p.cost, p.loss), p in best, threshold) for p in points]
    axis = "latency of a generation, ms" if measured else "multiply-adds left"
    middle = (LEFT + WIDTH - RIGHT) / 2
    shapes.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{axis}</text>'
    )
    shapes.append(f'<text class="name" x="{LEFT - 52}" y="{TOP - 18}">loss</text>')
    title = f"Loss against {axis} of {len(points)} plans"
    return (
        f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="{title}">{"".join(shapes)}</svg>'
    )


def _dot(point: Point, at: tuple[float, float], best: bool, threshold: float | None) -> str:
    x, y = at
    cost = milliseconds(point.cost) if point.measured else f"{point.cost:.1%} of multiply-adds"
    here = threshold is not None and point.threshold == threshold
    words = [point.label, cost, f"loss {point.loss:.4g}"]
    if point.threshold is not None:
        words.append(f"δ {point.threshold:g}")
    words += ["this plan"] if here else []
    words += [] if best else ["beaten by a cheaper plan with no more loss"]
    tip = escape("\n".join(word for word in dict.fromkeys(words) if word))
    ring = f'<circle class="here" cx="{x}" cy="{y}" r="10"/>' if here else ""
    kind = "dot" if best else "dot beaten"
    return (
        f'{ring}<circle class="{kind}" cx="{x}" cy="{y}" r="5" tabindex="0" role="img" '
        f'aria-label="{tip}" data-tip="{tip}"/>{_label(point, at) if best or here else ""}'
    )


def _label(point: Point, at: tuple[float, float]) -> str:
    """Return a point's label: above its right, or below its left where there is no room."""
    x, y = at
    shown = point.label if len(point.label) <= LABEL else point.label[: LABEL - 1] + "…"
    room = x + 11 + 7 * len(shown) < WIDTH
    place = f'x="{x + 11}" y="{y - 7}"' if room else f'x="{x - 11}" y="{y + 18}" text-anchor="end"'
    return f'<text class="label" {place}>{escape(shown)}</text>'
