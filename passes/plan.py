"""Plans: which method every attention site uses at every step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ditc.runtime.errors import PlanError

from .costs import ModelCost
from .identity import CfgLayout, Identity, compatible
from .liveness import kept_residuals
from .method import Method, parse_method
from .origin import Origin, Tried
from .tile_window import TileLayout, TileWindow
from .window import SiteWindow, Window

if TYPE_CHECKING:
    from .program import Program, Site

__all__ = ["Losses", "Plan"]

FORMAT = "ditc-plan"
VERSION = 1
MAX_STEPS = 10_000

Losses = Mapping[Method, float]
"""Loss of each candidate that was tried for a cell."""


@dataclass(frozen=True)
class Plan:
    """Methods for every step and eligible site, and what they hold for.

    Attributes:
        identity: the model the plan was made for.
        latents: shape of one sample's latents, without the batch.
        cfg: layout of classifier-free guidance, None without.
        steps: number of denoising steps.
        windows: window of each site.
        cells: for each step the method of each site.
        cost: multiply-adds of the model and its sites, as captured for the plan.
        scheduler: class name of the scheduler the plan was found with, if any.
        guidance_scale: that it was found with, if any.
        origin: how it was found, None if it was written.
        losses: for each step and site the loss of every candidate that was tried, if known.
        pareto: what a search for a budget tried, by rising threshold; None if it had none.
    """

    identity: Identity
    latents: tuple[int, ...]
    cfg: CfgLayout | None
    steps: int
    windows: Mapping[str, SiteWindow]
    cells: tuple[Mapping[str, Method], ...] = field(repr=False)
    cost: ModelCost = field(repr=False)
    scheduler: str | None = None
    guidance_scale: float | None = None
    origin: Origin | None = None
    losses: tuple[Mapping[str, Losses], ...] | None = field(default=None, repr=False)
    pareto: tuple[Tried, ...] | None = field(default=None, repr=False)

    @classmethod
    def uniform(
        cls,
        program: "Program",
        steps: int,
        method: str | Method,
        window: SiteWindow | None = None,
        scheduler: str | None = None,
    ) -> "Plan":
        """Return the plan that uses one method everywhere: step 0 full, eligible sites only.

        Args:
            program: the captured model.
            steps: number of denoising steps, 1 to 10000.
            method: name of the method.
            window: window of every site; if None a band of tokens // 8 a side, and one tile on each
                side where the program's tokens lie in tiles. A site whose tokens lie otherwise than
                the window takes them has the default one.
            scheduler: class name of the scheduler that the steps belong to.

        Raises:
            PlanError: if the method is unknown or can't hold for the program.
        """
        from .counting import model_cost  # which reads graphs, and so needs torch

        chosen = parse_method(method, f"method of {steps} steps")
        if not 1 <= steps <= MAX_STEPS:
            raise PlanError(f"plan of {steps} steps: expected 1 to {MAX_STEPS}")
        sites = [site for site in program.sites if site.eligible]
        first = {site.name: Method.FULL for site in sites}
        later = {site.name: chosen for site in sites}
        plan = cls(
            identity=program.identity,
            latents=program.latents.shape[1:],
            cfg=program.cfg,
            steps=steps,
            windows={site.name: _window_of(site, window) for site in sites},
            cells=(first, *[later] * (steps - 1)),
            cost=model_cost(program),
            scheduler=scheduler,
        )
        plan.check(program)
        return plan

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that the plan speaks of."""
        return tuple(self.windows)

    def site_multiply_adds(self) -> int:
        """Return the multiply-adds of its sites in a generation."""
        kept = [kept_residuals(self, step) for step in range(self.steps)]
        return sum(
            cost.of(self.method(step, name), self.windows[name], keeps_residual=name in kept[step])
            for step in range(self.steps)
            for name, cost in self.cost.sites.items()
        )

    def attention_left(self) -> float:
        """Return the share of its sites' multiply-adds that it leaves; 1 without sites."""
        full = sum(cost.full for cost in self.cost.sites.values()) * self.steps
        return self.site_multiply_adds() / full if full else 1.0

    def multiply_adds_left(self) -> float:
        """Return the share of a generation's multiply-adds that it leaves; 1 of a model of none.

        A share, as plans may have been made with batches of different sizes.
        """
        full = self.cost.full * self.steps
        left = self.cost.rest * self.steps + self.site_multiply_adds()
        return left / full if full else 1.0

    def method(self, step: int, site: str) -> Method:
        """Return the method of a site at a step, full for sites that the plan leaves alone."""
        return self.cells[step].get(site, Method.FULL)

    def replace(self, step: int, site: str, method: str | Method) -> "Plan":
        """Return a plan that differs in one cell; it is written then, no longer found.

        Raises:
            PlanError: if step or site is not in the plan, or the method is unknown.
        """
        if not 0 <= step < self.steps:
            raise PlanError(f"step {step}: the plan has steps 0 to {self.steps - 1}")
        if site not in self.windows:
            raise PlanError(f"site {site}: the plan has {_listed(self.sites)}")
        chosen = parse_method(method, f"step {step}, site {site}")
        cells = list(self.cells)
        cells[step] = {**cells[step], site: chosen}
        return replace(self, cells=tuple(cells), origin=None, losses=None, pareto=None)

    def check(self, program: "Program", *, ignore_model: bool = False) -> None:
        """Refuse a program that the plan was not made for, or cells that can't be run.

        A plan found on both halves in one batch, conditional first, holds for a program of two
        calls a step too, and the other way round: what a site computes from its halves is the same.

        Args:
            program: what the plan is to be used with.
            ignore_model: use the plan although it was made for another model.

        Raises:
            PlanError: naming what differs, or the step and site at fault.
        """
        if not ignore_model:
            self._check_model(program)
        if not compatible(self.cfg, program.cfg):
            raise PlanError(
                f"plan is for CFG layout {self.cfg}, the program has {program.cfg}: capture the "
                "program with the plan's layout, or find a plan for this one"
            )
        for name, window in self.windows.items():
            site = program.site(name)
            if site is None:
                known = _listed(tuple(s.name for s in program.sites if s.eligible))
                raise PlanError(f"unknown site {name}: the program has {known}")
            _check_window(site, window)
        for step, cells in enumerate(self.cells):
            for name, method in cells.items():
                self._check_cell(program, step, name, method)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return the plan as canonical JSON text."""
        record: dict[str, object] = {
            "format": FORMAT,
            "version": VERSION,
            "for": {
                "model": self.identity.model,
                "config_sha256": self.identity.config_sha256,
                "latents": list(self.latents),
                "cfg": self.cfg,
                "steps": self.steps,
                "scheduler": self.scheduler,
                "guidance_scale": self.guidance_scale,
            },
            "cost": self.cost.to_json(),
            "found": None if self.origin is None else self.origin.to_json(),
            "windows": {name: window.to_json() for name, window in self.windows.items()},
            "cells": [[str(step[name]) for name in self.windows] for step in self.cells],
            "losses": None if self.losses is None else [self._losses(row) for row in self.losses],
        }
        if self.pareto is not None:
            record["pareto"] = [tried.to_json() for tried in self.pareto]
        return json.dumps(record, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan.

        Raises:
            PlanError: if the file is missing, no plan, of a newer version, or malformed.
        """
        from .plan_file import read_plan  # which builds plans, and so imports this module

        return read_plan(Path(path))

    def _losses(self, row: Mapping[str, Losses]) -> list[dict[str, float]]:
        tried = [row.get(name, {}) for name in self.windows]
        return [{str(method): loss for method, loss in cell.items()} for cell in tried]

    def _check_model(self, program: "Program") -> None:
        mine, theirs = self.identity, program.identity
        if not mine.matches(theirs):
            same = mine.same_class(theirs)
            found = "another configuration of it" if same else theirs.model
            raise PlanError(
                f"plan is for {mine.model}, the program is {found}: find a plan for this model, "
                "or use it all the same with ignore_model=True (--ignore-model of the command)"
            )
        if self.latents != program.latents.shape[1:]:
            raise PlanError(
                f"plan is for latents {list(self.latents)}, the program has "
                f"{list(program.latents.shape[1:])}: find a plan at this resolution"
            )

    def _check_cell(self, program: "Program", step: int, name: str, method: Method) -> None:
        where = f"step {step}, site {name}"
        site = program.site(name)
        if method is Method.FULL:
            return
        if site is None or name not in self.windows:
            raise PlanError(f"{where}: unknown site")
        if not site.eligible:
            raise PlanError(f"{where}: {method} on a site that isn't eligible ({site.reason})")
        if step == 0 and method.windowed:
            raise PlanError(
                f"{where}: {method} before any full step, so there is no residual: step 0 is full"
            )
        if step == 0:
            raise PlanError(f"{where}: {method}, but step 0 is never compressed: make it full")
        if method.shares_cfg and self.cfg is None:
            raise PlanError(
                f"{where}: {method} without CFG halves: capture with cfg='cond-first' or "
                "'uncond-first', or use another method"
            )
        if method.shares_cfg and program.cfg == "separate-uncond-first":
            raise PlanError(
                f"{where}: {method}, but the unconditional call comes first, when there is no "
                "conditional output to share yet: use another method, or have the pipeline make "
                "the conditional call first"
            )


def _window_of(site: "Site", window: SiteWindow | None) -> SiteWindow:
    """Return the window where it fits the order of a site's tokens, else the default one."""
    if window is not None and _layout_of(window) == site.tiles:
        return window
    return Window.default(site.tokens) if site.tiles is None else TileWindow.default(site.tiles)


def _layout_of(window: SiteWindow) -> TileLayout | None:
    return window.layout if isinstance(window, TileWindow) else None


def _check_window(site: "Site", window: SiteWindow) -> None:
    if _layout_of(window) != site.tiles:
        found, expected = (
            layout or "the model's own order" for layout in (site.tiles, _layout_of(window))
        )
        raise PlanError(
            f"site {site.name}: its window is for tokens in {expected}, they lie in {found}"
        )
    if isinstance(window, Window) and window.radius >= site.tokens:
        raise PlanError(
            f"site {site.name}: window of {window.radius} tokens a side is wider than the "
            f"sequence of {site.tokens}: use full, or a radius below {site.tokens}"
        )


def _listed(names: tuple[str, ...], limit: int = 6) -> str:
    shown = ", ".join(names[:limit]) or "none"
    more = len(names) - limit
    return shown if more <= 0 else f"{shown} and {more} more"
