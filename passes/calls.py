"""What a plan comes to, call by call: one call a step, or one for each half of guidance.

Where a step makes two calls, each runs a graph of one half, and what the halves share goes through
slots. The conditional call comes first and computes what it would in a batch. The unconditional
call takes from it, instead of computing, what `asc` and `wa-rs+asc` share, and goes on to take
that as long as it is the latest there is: `ast` repeats it, `wa-rs` adds its residual.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .identity import CfgLayout, in_batch
from .liveness import kept_outputs, kept_residuals
from .method import Method
from .plan import Plan
from .program import Slot

__all__ = ["Call", "Run", "calls_of", "slot_at", "work_of"]

Call = Literal["", "cond", "uncond"]
"""A step's only call, or the one of a half."""


@dataclass(frozen=True)
class Run:
    """What one call of a step computes, keeps and takes.

    Attributes:
        step: from 0.
        call: which call of the step.
        methods: method of each site in the call's graph.
        keep_outputs: sites whose projected output a later call reads.
        keep_residuals: sites whose residual a later call reads.
        borrowed: sites whose slot it reads of the conditional call, not its own.
    """

    step: int
    call: Call
    methods: Mapping[str, Method]
    keep_outputs: frozenset[str]
    keep_residuals: frozenset[str]
    borrowed: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """What messages call it."""
        names = {"": "", "cond": ", conditional call", "uncond": ", unconditional call"}
        return f"step {self.step}{names[self.call]}"

    def read(self, slot: Slot) -> Slot:
        """Return the slot that the call reads where its graph says `slot`."""
        return slot_at(slot, "cond" if slot.site in self.borrowed else self.call)

    def written(self, slot: Slot) -> Slot:
        """Return the slot that the call writes where its graph says `slot`."""
        return slot_at(slot, self.call)


def calls_of(cfg: CfgLayout | None) -> tuple[Call, ...]:
    """Return a step's calls in order."""
    if cfg is None or in_batch(cfg):
        return ("",)
    return ("cond", "uncond") if cfg == "separate" else ("uncond", "cond")


def slot_at(slot: Slot, call: Call) -> Slot:
    """Return a call's own slot."""
    return replace(slot, name=f"{slot.name}@{call}") if call else slot


def work_of(plan: Plan) -> tuple[Run, ...]:
    """Return what every call of every step does under a plan, in order."""
    if plan.cfg is None or in_batch(plan.cfg):
        return tuple(
            Run(step, "", plan.cells[step], kept_outputs(plan, step), kept_residuals(plan, step))
            for step in range(plan.steps)
        )
    runs = [
        Run(
            step,
            call,
            {site: _method(plan.method(step, site), call) for site in plan.sites},
            frozenset(),
            frozenset(),
            frozenset(site for site in plan.sites if call == "uncond" and _takes(plan, step, site)),
        )
        for step in range(plan.steps)
        for call in calls_of(plan.cfg)
    ]
    return _with_what_is_read(runs, plan.sites)


def _method(method: Method, call: Call) -> Method:
    if not method.shares_cfg:
        return method
    return method.unshared if call == "cond" else Method.AST


def _takes(plan: Plan, step: int, site: str) -> bool:
    """Whether the unconditional call reads what the conditional one left, at a site and step."""
    method = plan.method(step, site)
    if method.shares_cfg:
        return True
    if method is Method.AST:
        return _latest(plan, step, site, output=True).shares_cfg
    return method.windowed and _latest(plan, step, site, output=False).shares_cfg


def _latest(plan: Plan, step: int, site: str, *, output: bool) -> Method:
    """Return the method of the latest earlier step that left an output, or a residual."""
    earlier = (plan.method(at, site) for at in range(step - 1, -1, -1))
    return next(
        (m for m in earlier if (m is not Method.AST if output else m.runs_full_attention)),
        Method.FULL,
    )


def _with_what_is_read(runs: list[Run], sites: tuple[str, ...]) -> tuple[Run, ...]:
    """Return the runs with every write noted that a later run reads."""
    outputs: list[set[str]] = [set() for _ in runs]
    residuals: list[set[str]] = [set() for _ in runs]
    for site in sites:
        left: dict[tuple[Call, bool], int] = {}
        for number, run in enumerate(runs):
            method, source = run.methods[site], "cond" if site in run.borrowed else run.call
            if method is Method.AST:
                outputs[left[source, True]].add(site)
                continue
            if method.windowed:
                residuals[left[source, False]].add(site)
            else:
                left[run.call, False] = number
            left[run.call, True] = number
    return tuple(
        replace(run, keep_outputs=frozenset(kept), keep_residuals=frozenset(rest))
        for run, kept, rest in zip(runs, outputs, residuals, strict=True)
    )
