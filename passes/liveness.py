"""Liveness over steps: what a step has to keep because a later one reads that very write."""

from typing import TYPE_CHECKING

from .method import Method

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["kept_outputs", "kept_residuals"]


def kept_outputs(plan: "Plan", step: int) -> frozenset[str]:
    """Return the sites whose output at this step a later `ast` reads."""
    after = step + 1
    if after == plan.steps:
        return frozenset()
    return frozenset(
        site
        for site in plan.sites
        if plan.method(after, site) is Method.AST and plan.method(step, site) is not Method.AST
    )


def kept_residuals(plan: "Plan", step: int) -> frozenset[str]:
    """Return the sites whose residual at this step a later `wa-rs` reads."""
    return frozenset(
        site
        for site in plan.sites
        if plan.method(step, site).runs_full_attention and _residual_is_read(plan, step, site)
    )


def _residual_is_read(plan: "Plan", step: int, site: str) -> bool:
    for later in range(step + 1, plan.steps):
        method = plan.method(later, site)
        if method.runs_full_attention:
            return False
        if method.windowed:
            return True
    return False
