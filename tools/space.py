"""What a search may choose: the model cut at its sites, and the methods each site may have."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ditc.passes import (
    Gate,
    Method,
    ModelCost,
    Plan,
    Program,
    Site,
    model_cost,
    rewrite,
)
from ditc.passes.identity import in_batch
from ditc.passes.pieces import Pieces, cut
from ditc.passes.window import SiteWindow
from ditc.runtime.errors import PassError, PlanError

from .decisions import CANDIDATES
from .latencies import Latencies

__all__ = ["Space", "space_of"]


@dataclass(frozen=True, eq=False)
class Space:
    """What a search may choose from, and what each choice saves.

    Attributes:
        program: the captured model, its batch the calibration samples (twice with CFG).
        pieces: the program, cut at the sites.
        windows: window of each site.
        candidates: for each site the methods to try, in the paper's order.
        cost: multiply-adds of the model and its sites.
        latencies: what each method takes on the target, None where multiply-adds have to do.
        gate: what was refused because of them, None without.
    """

    program: Program = field(repr=False)
    pieces: Pieces = field(repr=False)
    windows: Mapping[str, SiteWindow]
    candidates: Mapping[str, tuple[Method, ...]]
    cost: ModelCost = field(repr=False)
    latencies: Latencies | None = field(repr=False)
    gate: Gate | None

    def saved(self, site: str, method: Method) -> float:
        """Return what a method saves at a site in a step: milliseconds, else multiply-adds."""
        if self.latencies is not None:
            return self.latencies.saved_ms(site, method)
        cost = self.cost.sites[site]
        return cost.full - cost.of(method, self.windows[site])

    def keeping(self, site: str, method: Method) -> float:
        """Return what a residual costs a site that keeps it: milliseconds, without latencies 0.

        The paper's search counts no multiply-adds for it.
        """
        return 0.0 if self.latencies is None else self.latencies.keeping_extra_ms(site, method)

    def predicted(self, plan: Plan) -> float:
        """Return what a generation takes: milliseconds, else the share of multiply-adds left."""
        if self.latencies is not None:
            return self.latencies.predicted_ms(plan)
        return plan.multiply_adds_left()


def space_of(
    program: Program,
    windows: Mapping[str, SiteWindow] | None = None,
    latencies: Latencies | None = None,
) -> Space:
    """Return what a search of a program may choose from.

    Args:
        program: the captured model.
        windows: window of each site to compress, the default one of every eligible site if None.
        latencies: of the target. A method that isn't faster than full attention at a site there
            is no candidate at that site, whatever its multiply-adds promise.

    Raises:
        PlanError: if nothing is eligible, or the latencies are of another model, resolution,
            layout of CFG, or of other windows.
    """
    if program.cfg is not None and not in_batch(program.cfg):
        raise PlanError(
            f"the program has CFG layout {program.cfg}, a search wants both halves in one batch: "
            "capture recording.batched(); its plan holds for the two calls too"
        )
    plan = Plan.uniform(program, 1, Method.FULL)
    chosen = dict(plan.windows) if windows is None else dict(windows)
    if not chosen:
        raise PlanError("the program has no site that can be compressed")
    if latencies is not None:
        latencies.check(program, chosen)
    pieces = cut(program, chosen)
    possible = {part.site.name: _possible(program, part.site, chosen) for part in pieces.sites}
    cost = model_cost(program)
    if latencies is None:
        return Space(program, pieces, chosen, possible, cost, None, None)
    refused = {
        site: tuple(method for method in methods if not latencies.faster(site, method))
        for site, methods in possible.items()
    }
    kept = {
        site: tuple(method for method in methods if method not in refused[site])
        for site, methods in possible.items()
    }
    gate = Gate(latencies.target, {site: methods for site, methods in refused.items() if methods})
    return Space(program, pieces, chosen, kept, cost, latencies, gate)


def _possible(
    program: Program, site: Site, windows: Mapping[str, SiteWindow]
) -> tuple[Method, ...]:
    """Return the methods that a site can have: no sharing where its halves can't be told.

    Nor where those of its residual can't: a shared step keeps it for windows of later steps.
    """
    apart = tuple(method for method in CANDIDATES if not method.shares_cfg)
    if program.cfg is None:
        return apart
    try:
        rewrite(program, {site.name: Method.ASC}, windows, keep_residuals={site.name})
    except PassError:
        return apart
    return CANDIDATES
