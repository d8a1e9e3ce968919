"""Plans: which method every attention site uses at every step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from ditc.runtime.errors import PlanError

from .program import CfgLayout, Identity, Program, Site
from .window import Window

__all__ = ["Method", "Plan"]

FORMAT = "ditc-plan"
VERSION = 1
MAX_STEPS = 10_000


class Method(StrEnum):
    """What a site computes at a step (DiTFastAttn, arXiv 2406.08552)."""

    FULL = "full"
    ASC = "asc"
    WA_RS = "wa-rs"
    WA_RS_ASC = "wa-rs+asc"
    AST = "ast"

    @property
    def windowed(self) -> bool:
        """Whether it uses window attention and a kept residual."""
        return self in (Method.WA_RS, Method.WA_RS_ASC)

    @property
    def shares_cfg(self) -> bool:
        """Whether it computes the conditional half only."""
        return self in (Method.ASC, Method.WA_RS_ASC)

    @property
    def runs_full_attention(self) -> bool:
        """Whether it sees every key, so that a residual can be taken from it."""
        return self in (Method.FULL, Method.ASC)


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
        scheduler: class name of the scheduler the plan was found with, if any.
    """

    identity: Identity
    latents: tuple[int, ...]
    cfg: CfgLayout | None
    steps: int
    windows: Mapping[str, Window]
    cells: tuple[Mapping[str, Method], ...] = field(repr=False)
    scheduler: str | None = None

    @classmethod
    def uniform(
        cls,
        program: Program,
        steps: int,
        method: str | Method,
        window: Window | None = None,
        scheduler: str | None = None,
    ) -> "Plan":
        """Return the plan that uses one method everywhere: step 0 full, eligible sites only.

        Args:
            program: the captured model.
            steps: number of denoising steps, 1 to 10000.
            method: name of the method.
            window: window of every site, a band of tokens // 8 a side if None.
            scheduler: class name of the scheduler that the steps belong to.

        Raises:
            PlanError: if the method is unknown or can't hold for the program.
        """
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
            windows={site.name: window or Window.default(site.tokens) for site in sites},
            cells=(first, *[later] * (steps - 1)),
            scheduler=scheduler,
        )
        plan.check(program)
        return plan

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that the plan speaks of."""
        return tuple(self.windows)

    def method(self, step: int, site: str) -> Method:
        """Return the method of a site at a step, full for sites that the plan leaves alone."""
        return self.cells[step].get(site, Method.FULL)

    def replace(self, step: int, site: str, method: str | Method) -> "Plan":
        """Return a plan that differs in one cell.

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
        return replace(self, cells=tuple(cells))

    def check(self, program: Program, *, ignore_model: bool = False) -> None:
        """Refuse a program that the plan was not made for, or cells that can't be run.

        Args:
            program: what the plan is to be used with.
            ignore_model: use the plan although it was made for another model.

        Raises:
            PlanError: naming what differs, or the step and site at fault.
        """
        if not ignore_model:
            self._check_model(program)
        if self.cfg != program.cfg:
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
        record = {
            "format": FORMAT,
            "version": VERSION,
            "for": {
                "model": self.identity.model,
                "config_sha256": self.identity.config_sha256,
                "latents": list(self.latents),
                "cfg": self.cfg,
                "steps": self.steps,
                "scheduler": self.scheduler,
            },
            "windows": {
                name: {"radius": window.radius, "block": window.block}
                for name, window in self.windows.items()
            },
            "cells": [[str(step[name]) for name in self.windows] for step in self.cells],
        }
        return json.dumps(record, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan.

        Raises:
            PlanError: if the file is missing, no plan, of a newer version, or malformed.
        """
        from .plan_file import read_plan

        return read_plan(Path(path))

    def _check_model(self, program: Program) -> None:
        mine, theirs = self.identity, program.identity
        if mine != theirs:
            found = theirs.model if theirs.model != mine.model else "another configuration of it"
            raise PlanError(
                f"plan is for {mine.model}, the program is {found}: find a plan for this model, "
                "or pass ignore_model=True to use it all the same"
            )
        if self.latents != program.latents.shape[1:]:
            raise PlanError(
                f"plan is for latents {list(self.latents)}, the program has "
                f"{list(program.latents.shape[1:])}: find a plan at this resolution"
            )

    def _check_cell(self, program: Program, step: int, name: str, method: Method) -> None:
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


def parse_method(text: object, where: str) -> Method:
    """Return the method of that name.

    Raises:
        PlanError: naming `where` and the methods there are.
    """
    try:
        return Method(text)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(Method)
        raise PlanError(f"{where}: unknown method {text!r}, expected one of {known}") from None


def _check_window(site: Site, window: Window) -> None:
    if window.radius >= site.tokens:
        raise PlanError(
            f"site {site.name}: window of {window.radius} tokens a side is wider than the "
            f"sequence of {site.tokens}: use full, or a radius below {site.tokens}"
        )


def _listed(names: tuple[str, ...], limit: int = 6) -> str:
    shown = ", ".join(names[:limit]) or "none"
    more = len(names) - limit
    return shown if more <= 0 else f"{shown} and {more} more"
