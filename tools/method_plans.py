"""Plans that show methods to a compiler: each in turn, or any of them anywhere."""

import random
from collections.abc import Iterable, Sequence

from ditc.passes import Method, Plan, Program
from ditc.passes.window import SiteWindow

__all__ = ["SPARING", "drawn_methods", "each_method"]

SPARING = ("wa-rs", "asc", "wa-rs+asc", "ast")
"""Methods that save something."""


def each_method(
    program: Program, wanted: Sequence[str] = SPARING, window: SiteWindow | None = None
) -> Plan:
    """Return a plan whose steps use each method at every site, a full step before each.

    Args:
        program: without halves it has no methods that share them.
        wanted: methods, in that order.
        window: of every site; the default one if None.
    """
    methods = _allowed(program, wanted)
    rows = ["full", *(row for method in methods for row in (method, "full"))][:-1]
    plan = Plan.uniform(program, len(rows), "full", window=window)
    for step, method in enumerate(rows):
        for site in plan.sites:
            plan = plan.replace(step, site, method)
    return plan


def drawn_methods(program: Program, steps: int, window: SiteWindow, seed: int = 0) -> Plan:
    """Return a plan whose steps, but the first, use any method at any site; half of them `ast`."""
    draw = random.Random(seed)
    allowed = _allowed(program, ("full", *SPARING))
    shares = [len(allowed) if method == "ast" else 1 for method in allowed]
    plan = Plan.uniform(program, steps, "full", window=window)
    for step in range(1, steps):
        for site in plan.sites:
            plan = plan.replace(step, site, draw.choices(allowed, shares)[0])
    return plan


def _allowed(program: Program, methods: Iterable[str]) -> list[str]:
    return [name for name in methods if program.cfg or not Method(name).shares_cfg]
