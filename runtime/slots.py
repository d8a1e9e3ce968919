"""Which write a run reads: slots carry site outputs and residuals from one run to later ones."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .errors import BundleError, EngineError

__all__ = ["SlotLedger", "needed_writes"]


class _Run(Protocol):
    @property
    def title(self) -> str: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def writes(self) -> tuple[str, ...]: ...


def needed_writes(
    runs: Sequence[_Run], storages: Mapping[str, int] | None = None
) -> list[dict[str, int]]:
    """Return for each run the slots it reads and the run whose write it needs, the latest before.

    Args:
        runs: what each reads and writes, in order: one a step, or one for each call of it.
        storages: the storage of each slot; None where each has its own.

    Raises:
        BundleError: if no earlier run writes a slot that a run reads, or another slot of its
            storage is written before, or at that very run.
    """
    storages = storages or {}
    holder: dict[int, str] = {}
    latest: dict[str, int] = {}
    needed: list[dict[str, int]] = []
    for number, run in enumerate(runs):
        for slot in run.reads:
            if slot not in latest:
                raise BundleError(
                    f"{run.title} reads slot {slot!r} that no earlier step writes, "
                    "compile the bundle again"
                )
            _check_held(run, slot, holder.get(storages.get(slot, -1), slot))
        needed.append({slot: latest[slot] for slot in run.reads})
        latest.update(dict.fromkeys(run.writes, number))
        _check_apart(run, storages)
        holder.update({storages[slot]: slot for slot in run.writes if slot in storages})
    return needed


def _check_held(run: _Run, slot: str, held: str) -> None:
    if held != slot:
        raise BundleError(
            f"{run.title} reads slot {slot!r}, whose storage slot {held!r} was written to since, "
            "compile the bundle again"
        )


def _check_apart(run: _Run, storages: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for slot in (*run.reads, *run.writes):
        other = seen.setdefault(storages.get(slot, -1), slot)
        if slot in storages and other != slot:
            raise BundleError(
                f"{run.title} uses slots {other!r} and {slot!r}, which share their storage, "
                "compile the bundle again"
            )


class SlotLedger:
    """Remembers which run wrote each slot last, and refuses a run that would read another's.

    Run n forgets what runs from n on wrote, so that going back starts again there.
    """

    def __init__(self, runs: Sequence[_Run], storages: Mapping[str, int] | None = None) -> None:
        self._needed = needed_writes(runs, storages)
        self._storages = storages or {}
        self._runs = runs
        self._written: dict[str, int] = {}

    @property
    def written(self) -> Mapping[str, int]:
        """Return the slots that hold something, and the number of the run that wrote each."""
        return dict(self._written)

    def begin(self, number: int) -> None:
        """Check that every slot a run reads holds the write it needs; its own writes are void.

        Raises:
            EngineError: if one doesn't; the message names the step to run before.
        """
        run = self._runs[number]
        self._written = {slot: by for slot, by in self._written.items() if by < number}
        for slot, writer in self._needed[number].items():
            if self._written.get(slot) != writer:
                found, first = self._written.get(slot), self._runs[writer].title
                holds = "nothing" if found is None else f"what {self._runs[found].title} wrote"
                raise EngineError(
                    f"{run.title} reads slot {slot!r} as {first} writes it, but it holds {holds}; "
                    f"run {first} and then the steps up to {run.title.removeprefix('step ')} in "
                    "order"
                )
        written = set(run.writes)
        storages = {self._storages[slot] for slot in written if slot in self._storages}
        for slot in list(self._written):
            if slot in written or self._storages.get(slot) in storages:
                del self._written[slot]

    def commit(self, number: int) -> None:
        """Note that a run came to its end and wrote its slots."""
        self._written.update(dict.fromkeys(self._runs[number].writes, number))

    def reset(self) -> None:
        """Forget every write."""
        self._written = {}
