"""Draw the trade-off between cost and loss over several plans."""

from collections.abc import Sequence
from html import escape

from .report_points import Point
from .report_ticks import round_ticks
from .report_words import milliseconds

__all__ = ["frontier", "pareto_chart", "which"]

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 34, 46
LABEL = 24
"""Letters of a label that are shown."""
LETTER, LINE = 7, 15
"""Width and height of a letter, generously."""
DOT = 7
"""Half the side of the square that a dot keeps free of labels."""
SAME = 0.0005
"""How far, as a share of multiply-adds, a point may lie from the plan that it is: lists round."""

Box = tuple[float, float, float, float]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in cost and loss both, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def which(points: Sequence[Point], threshold: float | None, left: float | None) -> int | None:
    """Return which point is the plan at hand, None where none is or several may be.

    Args:
        points: all in the same unit.
        threshold: δ of the plan, None if it has none.
        left: share of the model's multiply-adds that it leaves, None if that isn't known.
    """
    if threshold is None:
        return None
    alike = [number for number, point in enumerate(points) if point.threshold == threshold]
    if len(alike) > 1 and left is not None:
        alike = [
            number
            for number in alike
            if not points[number].measured and abs(points[number].cost - left) <= SAME
        ]
    return alike[0] if len(alike) == 1 else None


def pareto_chart(points: Sequence[Point], here: int | None, whose: str = "this plan") -> str:
    """Return the points, the frontier through them, and a ring around one.

    Args:
        points: at least one; all in the same unit.
        here: which one has the ring, None for none.
        whose: what the ringed point is called.
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
    places = [place(p.cost, p.loss) for p in points]
    for number, (point, at) in enumerate(zip(points, places, strict=True)):
        shapes.append(_dot(point, at, point in best, whose if number == here else None))
    told = [n for n, p in enumerate(points) if p.label and (p in best or n == here)]
    told.sort(key=lambda n: n != here)
    shapes += _labels([(points[n].label, places[n]) for n in told], places)
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


def _dot(point: Point, at: tuple[float, float], best: bool, ringed: str | None) -> str:
    x, y = at
    cost = milliseconds(point.cost) if point.measured else f"{point.cost:.1%} of multiply-adds"
    words = [point.label, cost, f"loss {point.loss:.4g}"]
    if point.threshold is not None:
        words.append(f"δ {point.threshold:g}")
    words += [] if ringed is None else [ringed]
    words += [] if best else ["beaten by a cheaper plan with no more loss"]
    tip = escape("\n".join(word for word in dict.fromkeys(words) if word))
    ring = f'<circle class="here" cx="{x}" cy="{y}" r="10"/>' if ringed is not None else ""
    kind = "dot" if best else "dot beaten"
    return (
        f'{ring}<circle class="{kind}" cx="{x}" cy="{y}" r="5" tabindex="0" role="img" '
        f'aria-label="{tip}" data-tip="{tip}"/>'
    )


def _labels(
    labels: Sequence[tuple[str, tuple[float, float]]], dots: Sequence[tuple[float, float]]
) -> list[str]:
    """Return labels beside their dots, the first ones first; those that find no room are left out.

    Args:
        labels: words, and where their dots are.
        dots: where all dots are.
    """
    taken: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots]
    found = []
    for words, at in labels:
        shown = words if len(words) <= LABEL else words[: LABEL - 1] + "…"
        for x, y, right in _beside(at):
            width = LETTER * len(shown)
            left = x if right else x - width
            box = (left, y - LINE + 3, left + width, y + 3)
            if left < LEFT or left + width > WIDTH or any(_overlap(box, other) for other in taken):
                continue
            anchor = "" if right else ' text-anchor="end"'
            found.append(f'<text class="label" x="{x:g}" y="{y:g}"{anchor}>{escape(shown)}</text>')
            taken.append(box)
            break
    return found


def _beside(at: tuple[float, float]) -> list[tuple[float, float, bool]]:
    """Return the places for a dot's label, the best first, and whether it runs to the right."""
    x, y = at
    return [
        (x + 11, y - 7, True),
        (x - 11, y + 18, False),
        (x + 11, y + 18, True),
        (x - 11, y - 7, False),
    ]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
