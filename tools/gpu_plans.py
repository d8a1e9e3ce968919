"""Plans with the paper's shares of compressed attention."""

import random

from ditc.passes import Method, Plan, Program

__all__ = ["LEVELS", "attention_left", "plan_with"]

LEVELS = {
    "DiT-XL/2-512": {"D2": 69, "D4": 49, "D6": 34},
    "PixArt-Sigma-1K": {"D2": 74, "D4": 52, "D6": 37},
    "PixArt-Sigma-2K": {"D2": 60, "D4": 36, "D6": 24},
}
"""Attention multiply-adds left in percent, of DiTFastAttn (arXiv 2406.08552), by threshold."""

COMPRESSED = (Method.AST, Method.WA_RS_ASC, Method.WA_RS, Method.ASC)


def plan_with(program: Program, steps: int, left_percent: float, seed: int = 0) -> Plan:
    """Return a plan that leaves about so much of the attention's multiply-adds.

    The paper gives no list of its plans. Here the four methods are used equally often, at cells
    drawn at random behind step 0, as many as it takes; where all of them aren't enough, `asc`
    gives way to `ast`.
    """
    plan = Plan.uniform(program, steps, Method.FULL)
    sites = [site for site in program.sites if site.eligible]
    cells = [(step, site.name) for step in range(1, steps) for site in sites]
    random.Random(seed).shuffle(cells)
    changes = [(*cell, COMPRESSED[number % 4]) for number, cell in enumerate(cells)]
    changes += [(*cell, Method.AST) for cell in cells[3::4]]
    for step, name, method in changes:
        if 100 * attention_left(plan, program) <= left_percent:
            break
        plan = plan.replace(step, name, method)
    return plan


def attention_left(plan: Plan, program: Program) -> float:
    """Return the share of pairs of queries and keys that a plan leaves, over its sites, in (0, 1].

    Windows that a step computes to keep a residual aren't counted, as the paper doesn't.
    """
    left = total = 0.0
    for site in program.sites:
        if not site.eligible:
            continue
        window = plan.windows[site.name].density(site.tokens)
        share = {
            Method.FULL: 1.0,
            Method.ASC: 0.5,
            Method.WA_RS: window,
            Method.WA_RS_ASC: window / 2,
            Method.AST: 0.0,
        }
        pairs = site.tokens * site.context_tokens * site.heads
        total += pairs * plan.steps
        left += pairs * sum(share[plan.method(step, site.name)] for step in range(plan.steps))
    return left / total
