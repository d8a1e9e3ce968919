"""Draw what a limit on buckets costs: predicted slowdown over the number of graphs."""

from ditc.passes.curve import Curve

from .counted import counted

__all__ = ["curve_chart"]

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 34, 46
TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def curve_chart(curve: Curve, here: int | None) -> str:
    """Return the slowdown of attention under every limit against none.

    Args:
        curve: of at least two buckets.
        here: how many buckets there are, ringed; None rings the knee.
    """
    slowdowns = [curve.slowdown(limit) for limit in range(1, curve.buckets + 1)]
    ticks = _ticks(max(slowdowns))

    def place(limit: int, slowdown: float) -> tuple[float, float]:
        x = LEFT + (limit - 1) / (curve.buckets - 1) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (slowdown - 1) / (ticks[-1] - 1) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    shapes = []
    for tick in ticks:
        _, y = place(1, tick)
        shapes.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        shapes.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{tick:g}×</text>')
    for limit in {*(tick for tick in TICKS if tick <= 0.9 * curve.buckets), curve.buckets}:
        x, _ = place(limit, 1)
        shapes.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{limit}</text>'
        )
    places = [place(limit, slowdown) for limit, slowdown in enumerate(slowdowns, start=1)]
    line = "L".join(f"{x} {y}" for x, y in places)
    shapes.append(f'<path class="front" d="M{line}"/>')
    ringed = curve.knee if here is None else min(here, curve.buckets)
    shapes += [_dot(curve, limit, at, ringed) for limit, at in enumerate(places, start=1)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    shapes.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">buckets</text>'
    )
    words = "attention's predicted cost against no limit"
    shapes.append(f'<text class="name" x="{LEFT - 52}" y="{TOP - 18}">{words}</text>')
    return (
        f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="Predicted slowdown over buckets">{"".join(shapes)}</svg>'
    )


def _dot(curve: Curve, limit: int, at: tuple[float, float], ringed: int) -> str:
    x, y = at
    tip = (
        f"{counted(limit, 'bucket')}\n{curve.slowdown(limit):.2f}× of what no limit "
        f"costs\n{curve.kept(limit):.1%} of the saving kept"
    )
    ring = f'<circle class="here" cx="{x}" cy="{y}" r="10"/>' if limit == ringed else ""
    return (
        f'{ring}<circle class="dot" cx="{x}" cy="{y}" r="3.5" tabindex="0" role="img" '
        f'aria-label="{tip}" data-tip="{tip}"/>'
    )


def _ticks(largest: float) -> list[float]:
    """Return 1 and round multiples of one step above it, the last at least `largest`."""
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    step = next((step for step in steps if 5 * step >= largest - 1), (largest - 1) / 5)
    found = [1.0]
    while len(found) < 2 or found[-1] < largest - 1e-9:
        found.append(round(1 + step * len(found), 6))
    return found
