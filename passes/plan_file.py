"""Read plan files, trusting nothing in them."""

import json
from collections.abc import Mapping
from pathlib import Path

from ditc.runtime.errors import PlanError

from .costs import ModelCost, SiteCost
from .identity import CFG_LAYOUTS, CfgLayout, Identity
from .method import Method, parse_method
from .origin_file import read_origin, read_pareto
from .plan import FORMAT, MAX_STEPS, VERSION, Losses, Plan
from .plan_fields import (
    kind_of,
    read_fields,
    read_integer,
    read_list,
    read_no_negative,
    read_number,
    read_text,
)
from .tile_window import TileWindow
from .window import SiteWindow
from .window_file import read_window

__all__ = ["parse_plan", "read_plan"]

MAX_CELLS = 10_000_000


def read_plan(path: Path) -> Plan:
    """Read a plan from a file.

    Raises:
        PlanError: if the file can't be read or doesn't hold a plan of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"plan {path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"plan {path}: can't be read: {error}") from error
    return parse_plan(text, str(path))


def parse_plan(text: str, where: str) -> Plan:
    """Parse a plan's JSON text.

    Args:
        text: the file's content.
        where: what errors call it.

    Raises:
        PlanError: naming the field at fault, what was expected and what was found.
    """
    try:
        record = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {where}: no valid JSON: {error}") from error
    try:
        return _plan(record)
    except PlanError as error:
        raise PlanError(f"plan {where}: {error}") from error


def _plan(record: object) -> Plan:
    _head(record)
    names = {"format", "version", "for", "cost", "found", "windows", "cells", "losses"}
    top = read_fields(record, "plan", names, {"pareto"})
    held = read_fields(
        top["for"],
        "for",
        {"model", "config_sha256", "latents", "cfg", "steps", "scheduler", "guidance_scale"},
    )
    steps = read_integer(held["steps"], "for.steps", 1, MAX_STEPS)
    windows = _windows(top["windows"])
    plan = Plan(
        identity=Identity(
            read_text(held["model"], "for.model"),
            read_text(held["config_sha256"], "for.config_sha256"),
        ),
        latents=tuple(
            read_integer(size, "for.latents", 1, 2**31)
            for size in read_list(held["latents"], "for.latents")
        ),
        cfg=_cfg(held["cfg"]),
        steps=steps,
        windows=windows,
        cells=_cells(top["cells"], steps, tuple(windows)),
        cost=_cost(top["cost"], tuple(windows)),
        scheduler=None
        if held["scheduler"] is None
        else read_text(held["scheduler"], "for.scheduler"),
        guidance_scale=_scale(held["guidance_scale"]),
        origin=None if top["found"] is None else read_origin(top["found"], tuple(windows)),
        losses=None if top["losses"] is None else _losses(top["losses"], steps, tuple(windows)),
        pareto=read_pareto(top["pareto"]) if "pareto" in top else None,
    )
    _check_grids(plan)
    return plan


def _head(record: object) -> None:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PlanError(f'no plan: expected an object with "format": "{FORMAT}"')
    version = read_integer(record.get("version"), "version", 1, 2**31)
    if version > VERSION:
        raise PlanError(f"version {version} is newer than {VERSION}: upgrade ditc to read it")


def _windows(value: object) -> dict[str, SiteWindow]:
    if not isinstance(value, dict):
        raise PlanError(f"windows: expected an object, found {kind_of(value)}")
    for name in value:
        if not name.isprintable():
            raise PlanError(f"windows: site name {name!r} has characters that can't be printed")
    return {name: read_window(entry, f"windows.{name}") for name, entry in value.items()}


def _check_grids(plan: Plan) -> None:
    for name, window in plan.windows.items():
        site = plan.cost.sites[name]
        if not isinstance(window, TileWindow):
            continue
        image = site.tokens - (site.text[1] - site.text[0])
        if window.layout.tokens != image:
            raise PlanError(
                f"windows.{name}.grid: holds {window.layout.tokens} tokens, the site has {image}"
            )


def _cells(value: object, steps: int, sites: tuple[str, ...]) -> tuple[Mapping[str, Method], ...]:
    rows = _rows(value, "cells", steps)
    if steps * len(sites) > MAX_CELLS:
        raise PlanError(f"cells: {steps * len(sites)} are more than {MAX_CELLS}")
    cells = tuple(_row(row, step, sites) for step, row in enumerate(rows))
    for site, method in cells[0].items():
        if method is not Method.FULL:
            raise PlanError(
                f"step 0, site {site}: is {method}, expected full: nothing is kept before it"
            )
    return cells


def _rows(value: object, where: str, steps: int) -> list[object]:
    rows = read_list(value, where)
    if len(rows) != steps:
        raise PlanError(f"{where}: expected {steps} steps, found {len(rows)}")
    return rows


def _row(value: object, step: int, sites: tuple[str, ...]) -> Mapping[str, Method]:
    row = read_list(value, f"step {step}")
    if len(row) != len(sites):
        raise PlanError(f"step {step}: expected {len(sites)} methods, found {len(row)}")
    return {
        site: parse_method(method, f"step {step}, site {site}")
        for site, method in zip(sites, row, strict=True)
    }


def _cost(value: object, sites: tuple[str, ...]) -> ModelCost:
    fields = read_fields(value, "cost", {"rest", "sites"})
    given = read_fields(fields["sites"], "cost.sites", set(sites))
    return ModelCost(
        rest=read_integer(fields["rest"], "cost.rest", 0, 2**63),
        sites={name: _site_cost(given[name], f"cost.sites.{name}") for name in sites},
    )


def _site_cost(value: object, where: str) -> SiteCost:
    names = {"projections", "attention", "tokens"}
    text = isinstance(value, dict) and "text" in value
    fields = read_fields(value, where, names | {"text"} if text else names)
    tokens = read_integer(fields["tokens"], f"{where}.tokens", 1, 2**31)
    return SiteCost(
        projections=read_integer(fields["projections"], f"{where}.projections", 0, 2**63),
        attention=read_integer(fields["attention"], f"{where}.attention", 1, 2**63),
        tokens=tokens,
        text=_text(fields.get("text", [0, 0]), tokens, f"{where}.text"),
    )


def _text(value: object, tokens: int, where: str) -> tuple[int, int]:
    """Return the range of text at one end of a sequence, whose other tokens are image tokens."""
    ends = read_list(value, where)
    if len(ends) != 2:
        raise PlanError(f"{where}: expected two numbers, found {len(ends)}")
    start, stop = (read_integer(end, where, 0, tokens) for end in ends)
    at_one_end = start == 0 or stop == tokens
    if not (at_one_end and 0 <= stop - start < tokens):
        raise PlanError(
            f"{where}: is {start} to {stop}, expected a part at one end of {tokens} tokens"
        )
    return (start, stop) if start < stop else (0, 0)


def _losses(value: object, steps: int, sites: tuple[str, ...]) -> tuple[Mapping[str, Losses], ...]:
    rows = _rows(value, "losses", steps)
    return tuple(_loss_row(row, step, sites) for step, row in enumerate(rows))


def _loss_row(value: object, step: int, sites: tuple[str, ...]) -> Mapping[str, Losses]:
    row = read_list(value, f"losses of step {step}")
    if len(row) != len(sites):
        raise PlanError(f"losses of step {step}: expected {len(sites)}, found {len(row)}")
    return {site: _loss_cell(cell, step, site) for site, cell in zip(sites, row, strict=True)}


def _loss_cell(value: object, step: int, site: str) -> Losses:
    where = f"losses of step {step}, site {site}"
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object, found {kind_of(value)}")
    return {
        parse_method(name, where): read_no_negative(loss, where) for name, loss in value.items()
    }


def _scale(value: object) -> float | None:
    return None if value is None else read_number(value, "for.guidance_scale")


def _cfg(value: object) -> CfgLayout | None:
    for layout in (None, *CFG_LAYOUTS):
        if value == layout:
            return layout
    raise PlanError(f"for.cfg: expected {', '.join(CFG_LAYOUTS)} or null, found {value!r}")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record: dict[str, object] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"duplicate key {key!r}")
        record[key] = value
    return record


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no finite number")
