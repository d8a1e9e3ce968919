"""The calls of a step: one, or one for each half of guidance; each is a run of a graph.

Graphs are the same for both halves where they compute the same; what differs is where their slots
are. A slot named `s` in a graph is `s@cond` or `s@uncond` in a bundle of two calls: a call's own,
or the conditional one's where the unconditional call takes what that one left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .entries import BucketInfo
from .errors import BundleError
from .fields import JsonValue, read_list, read_name, read_names, read_object

__all__ = ["CFG_LAYOUTS", "CallInfo", "Run", "calls_of", "in_batch", "runs_of", "slot_at"]

CFG_LAYOUTS = ("cond-first", "uncond-first", "separate", "separate-uncond-first", None)
CALL_NAMES = {"": "", "cond": ", conditional call", "uncond": ", unconditional call"}


def in_batch(cfg: str | None) -> bool:
    """Whether one batch holds both halves of guidance."""
    return cfg in ("cond-first", "uncond-first")


def calls_of(cfg: str | None) -> tuple[str, ...]:
    """Return the names of a step's calls, in order; a single call has an empty one."""
    if cfg is None or in_batch(cfg):
        return ("",)
    return ("cond", "uncond") if cfg == "separate" else ("uncond", "cond")


def slot_at(name: str, call: str) -> str:
    """Return the name of a call's slot."""
    return f"{name}@{call}" if call else name


@dataclass(frozen=True)
class CallInfo:
    """What one of a step's two calls runs.

    Attributes:
        name: `cond` or `uncond`.
        buckets: for each step the graph.
        borrowed: for each step the slots, as the graph names them, that are the conditional
            call's.
    """

    name: str
    buckets: tuple[str, ...]
    borrowed: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "name": self.name,
            "buckets": list(self.buckets),
            "borrowed": [list(names) for names in self.borrowed],
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "CallInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("name", "buckets", "borrowed"))
        return cls(
            read_name(found["name"], f"{where}.name"),
            read_list(found["buckets"], f"{where}.buckets", read_name),
            read_list(found["borrowed"], f"{where}.borrowed", read_names),
        )


@dataclass(frozen=True)
class Run:
    """One run of a graph.

    Attributes:
        step: from 0.
        call: `cond`, `uncond`, or empty where a step is one call.
        bucket: name of the graph.
        slots: for each slot that the graph names the bundle's slot.
        reads: the bundle's slots that it reads.
        writes: those that it writes.
    """

    step: int
    call: str
    bucket: str
    slots: Mapping[str, str]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"step {self.step}{CALL_NAMES[self.call]}"


def runs_of(
    cfg: str | None, steps: int, buckets: Sequence[BucketInfo], calls: Sequence[CallInfo]
) -> tuple[Run, ...]:
    """Return all runs of a generation, in order.

    Raises:
        BundleError: if the calls aren't those of the layout, a call has other than one graph a
            step, or takes slots from the conditional call that its graph doesn't read.
    """
    names = calls_of(cfg)
    if [call.name for call in calls] != [name for name in names if name]:
        found = ", ".join(repr(call.name) for call in calls) or "none"
        listed = ", ".join(repr(name) for name in names if name) or "none"
        raise BundleError(f"calls: found {found}, expected {listed} for cfg {cfg!r}")
    known = {bucket.name: bucket for bucket in buckets}
    if not calls:
        owner = {step: bucket for bucket in buckets for step in bucket.steps}
        return tuple(_run(step, "", owner[step], ()) for step in range(steps))
    for call in calls:
        _check_call(call, steps, known)
    return tuple(
        _run(step, call.name, known[call.buckets[step]], call.borrowed[step])
        for step in range(steps)
        for call in calls
    )


def _check_call(call: CallInfo, steps: int, known: Mapping[str, BucketInfo]) -> None:
    where = f"calls: {call.name!r}"
    if len(call.buckets) != steps or len(call.borrowed) != steps:
        found = f"{len(call.buckets)} buckets and {len(call.borrowed)} lists of slots"
        raise BundleError(f"{where} has {found}, expected {steps} of each")
    for step, (name, borrowed) in enumerate(zip(call.buckets, call.borrowed, strict=True)):
        if name not in known or step not in known[name].steps:
            raise BundleError(f"{where} runs {name!r} at step {step}, which isn't its graph there")
        for slot in borrowed:
            if slot not in known[name].reads or call.name == "cond":
                raise BundleError(f"{where} borrows {slot!r} at step {step} and doesn't read it")


def _run(step: int, call: str, bucket: BucketInfo, borrowed: Sequence[str]) -> Run:
    slots = {
        name: slot_at(name, "cond" if name in borrowed else call)
        for name in (*bucket.reads, *bucket.writes)
    }
    return Run(
        step=step,
        call=call,
        bucket=bucket.name,
        slots=slots,
        reads=tuple(slots[name] for name in bucket.reads),
        writes=tuple(slots[name] for name in bucket.writes),
    )
