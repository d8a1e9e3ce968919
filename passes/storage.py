"""Plan the memory of slots: lifetimes over the schedule, and storage that slots share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .identity import in_batch
from .method import Method
from .plan import Plan
from .program import Slot

__all__ = ["Lifetimes", "lifetimes", "share_storage", "storage_bytes", "without"]

Lifetimes = Mapping[str, frozenset[int]]
"""For each slot, by name, the steps at which its storage is taken."""


def lifetimes(
    reads: Sequence[Sequence[str]], writes: Sequence[Sequence[str]]
) -> dict[str, frozenset[int]]:
    """Return when slots hold what is still to be read.

    From the step of a write to that of its last read, both included: a graph may write a slot
    before it reads another. A write that nobody reads takes its own step.

    Args:
        reads: for each step the slots it reads, by name.
        writes: for each step the slots it writes.
    """
    taken: dict[str, set[int]] = {}
    latest: dict[str, int] = {}
    for step, (read, written) in enumerate(zip(reads, writes, strict=True)):
        for name in read:
            taken[name].update(range(latest[name], step + 1))
        for name in written:
            taken.setdefault(name, set()).add(step)
            latest[name] = step
    return {name: frozenset(steps) for name, steps in taken.items()}


def share_storage(slots: Sequence[Slot], alive: Lifetimes) -> dict[str, int]:
    """Return the number of each slot's storage; slots that are never alive together share one.

    Largest first, each into the first storage that is free at all of its steps. Sizes of slots
    are few in a model, so that this is near what is alive at the fullest step.
    """
    taken: list[set[int]] = []
    found: dict[str, int] = {}
    for slot in sorted(slots, key=lambda slot: -slot.nbytes):
        steps = alive[slot.name]
        number = next((n for n, used in enumerate(taken) if not used & steps), len(taken))
        if number == len(taken):
            taken.append(set())
        taken[number] |= steps
        found[slot.name] = number
    return found


def storage_bytes(slots: Sequence[Slot], storages: Mapping[str, int]) -> int:
    """Return the bytes of all storages: each is as large as its largest slot."""
    largest: dict[int, int] = {}
    for slot in slots:
        number = storages[slot.name]
        largest[number] = max(largest.get(number, 0), slot.nbytes)
    return sum(largest.values())


def without(plan: Plan, slot: Slot) -> tuple[Plan, int]:
    """Return a plan that doesn't need a slot, and the multiply-adds that this adds.

    Without its output kept a site computes what it would have shared in full, without its
    residual it sees all keys.
    """
    cells, added = list(plan.cells), 0
    cost, window = plan.cost.sites[slot.site], plan.windows[slot.site]
    for step, row in enumerate(cells):
        method = row[slot.site]
        milder = _without(method, slot, apart=plan.cfg is not None and not in_batch(plan.cfg))
        if milder is not method:
            cells[step] = {**row, slot.site: milder}
            added += cost.of(milder, window) - cost.of(method, window)
    return replace(plan, cells=tuple(cells)), added


def _without(method: Method, slot: Slot, *, apart: bool) -> Method:
    """Return the milder method; calls apart share across guidance through a slot too."""
    if slot.kind == "output" and apart and method.shares_cfg:
        return method.unshared
    if slot.kind == "output":
        return Method.FULL if method is Method.AST else method
    if method.windowed:
        return Method.ASC if method.shares_cfg else Method.FULL
    return method
