"""Read from a plan file how its plan was found, trusting nothing in it."""

from collections.abc import Mapping

from ditc.runtime.errors import PlanError

from .method import parse_method
from .origin import Gate, Goal, Origin, Tried
from .plan_fields import (
    MAX_SEED,
    kind_of,
    read_fields,
    read_integer,
    read_list,
    read_no_negative,
    read_positive,
    read_text,
)

__all__ = ["read_origin", "read_pareto"]

MAX_TRIED = 200


def read_origin(value: object, sites: tuple[str, ...]) -> Origin:
    """Read how a plan was found.

    Args:
        value: the field `found`, not null.
        sites: the plan's.

    Raises:
        PlanError: naming the field at fault.
    """
    names = {"search", "threshold", "metric", "seed", "samples", "ditc"}
    fields = read_fields(value, "found", names, {"target", "gated", "speedup", "budget_ms"})
    return Origin(
        search=read_text(fields["search"], "found.search"),
        threshold=read_positive(fields["threshold"], "found.threshold"),
        metric=read_text(fields["metric"], "found.metric"),
        seed=read_integer(fields["seed"], "found.seed", 0, MAX_SEED),
        samples=read_integer(fields["samples"], "found.samples", 1, 2**31),
        ditc=read_text(fields["ditc"], "found.ditc"),
        gate=_gate(fields, sites),
        goal=_goal(fields),
    )


def _gate(found: Mapping[str, object], sites: tuple[str, ...]) -> Gate | None:
    if ("target" in found) != ("gated" in found):
        raise PlanError("found: has one of target and gated, expected both or neither")
    if "gated" not in found:
        return None
    gated = found["gated"]
    if not isinstance(gated, dict):
        raise PlanError(f"found.gated: expected an object, found {kind_of(gated)}")
    for site in gated:
        if site not in sites:
            raise PlanError(f"found.gated: site {site!r} is none of the plan's")
    refused = {
        site: tuple(
            parse_method(method, f"found.gated.{site}")
            for method in read_list(methods, f"found.gated.{site}")
        )
        for site, methods in gated.items()
    }
    return Gate(read_text(found["target"], "found.target"), refused)


def _goal(found: Mapping[str, object]) -> Goal | None:
    given = {name: found[name] for name in ("speedup", "budget_ms") if name in found}
    if len(given) > 1:
        raise PlanError("found: has both speedup and budget_ms, expected one at most")
    numbers = {name: read_positive(value, f"found.{name}") for name, value in given.items()}
    return Goal(**numbers) if numbers else None


def read_pareto(value: object) -> tuple[Tried, ...]:
    """Read what a search for a budget came by.

    Raises:
        PlanError: naming the entry at fault.
    """
    entries = read_list(value, "pareto")
    if not 1 <= len(entries) <= MAX_TRIED:
        raise PlanError(f"pareto: has {len(entries)} entries, expected 1 to {MAX_TRIED}")
    tried = tuple(_tried(entry, f"pareto[{number}]") for number, entry in enumerate(entries))
    if len({entry.latency_ms is None for entry in tried}) > 1:
        raise PlanError("pareto: some entries have latency_ms, expected all or none")
    return tried


def _tried(value: object, where: str) -> Tried:
    names = {"threshold", "loss", "multiply_adds_left"}
    fields = read_fields(value, where, names, {"latency_ms"})
    numbers = {name: read_no_negative(fields[name], f"{where}.{name}") for name in fields}
    return Tried(
        numbers["threshold"],
        numbers["loss"],
        numbers.get("latency_ms"),
        numbers["multiply_adds_left"],
    )
