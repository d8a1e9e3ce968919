"""Which write a step reads: slots carry site outputs and residuals from step to step."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .errors import BundleError, EngineError

__all__ = ["SlotLedger", "needed_writes"]


class _Bucket(Protocol):
    @property
    def steps(self) -> tuple[int, ...]: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def writes(self) -> tuple[str, ...]: ...


def needed_writes(
    steps: int, buckets: Sequence[_Bucket], storages: Mapping[str, int] | None = None
) -> list[dict[str, int]]:
    """Return for each step the slots it reads and the step whose write it needs, the latest before.

    Args:
        steps: how many there are.
        buckets: what each reads and writes.
        storages: the storage of each slot; None where each has its own.

    Raises:
        BundleError: if no earlier step writes a slot that a step reads, or another slot of its
            storage is written before, or at that very step.
    """
    storages = storages or {}
    holder: dict[int, str] = {}
    bucket_of = {step: bucket for bucket in buckets for step in bucket.steps}
    latest: dict[str, int] = {}
    needed: list[dict[str, int]] = []
    for step in range(steps):
        for slot in bucket_of[step].reads:
            if slot not in latest:
                raise BundleError(
                    f"step {step} reads slot {slot!r} that no earlier step writes, "
                    "compile the bundle again"
                )
            _check_held(step, slot, holder.get(storages.get(slot, -1), slot))
        needed.append({slot: latest[slot] for slot in bucket_of[step].reads})
        latest.update(dict.fromkeys(bucket_of[step].writes, step))
        _check_apart(step, [*bucket_of[step].reads, *bucket_of[step].writes], storages)
        holder.update({storages[slot]: slot for slot in bucket_of[step].writes if slot in storages})
    return needed


def _check_held(step: int, slot: str, held: str) -> None:
    if held != slot:
        raise BundleError(
            f"step {step} reads slot {slot!r}, whose storage slot {held!r} was written to since, "
            "compile the bundle again"
        )


def _check_apart(step: int, slots: Sequence[str], storages: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for slot in slots:
        other = seen.setdefault(storages.get(slot, -1), slot)
        if slot in storages and other != slot:
            raise BundleError(
                f"step {step} uses slots {other!r} and {slot!r}, which share their storage, "
                "compile the bundle again"
            )


class SlotLedger:
    """Remembers which step wrote each slot last, and refuses a step that would read another's.

    Running step k forgets what steps from k on wrote, so that going back starts again there.
    """

    def __init__(
        self, steps: int, buckets: Sequence[_Bucket], storages: Mapping[str, int] | None = None
    ) -> None:
        self._needed = needed_writes(steps, buckets, storages)
        self._storages = storages or {}
        self._writes = {step: bucket.writes for bucket in buckets for step in bucket.steps}
        self._written: dict[str, int] = {}

    @property
    def written(self) -> Mapping[str, int]:
        """Return the slots that hold something, and the step that wrote each."""
        return dict(self._written)

    def begin(self, step: int) -> None:
        """Check that every slot `step` reads holds the write it needs; its own writes are void.

        Raises:
            EngineError: if one doesn't; the message names the step to run before.
        """
        self._written = {slot: by for slot, by in self._written.items() if by < step}
        for slot, writer in self._needed[step].items():
            if self._written.get(slot) != writer:
                found = self._written.get(slot)
                holds = "holds nothing" if found is None else f"holds what step {found} wrote"
                raise EngineError(
                    f"step {step} reads slot {slot!r} as step {writer} writes it, but it {holds}; "
                    f"run step {writer} and then the steps up to {step} in order"
                )
        written = set(self._writes[step])
        storages = {self._storages[slot] for slot in written if slot in self._storages}
        for slot in list(self._written):
            if slot in written or self._storages.get(slot) in storages:
                del self._written[slot]

    def commit(self, step: int) -> None:
        """Note that `step` ran to its end and wrote its slots."""
        self._written.update(dict.fromkeys(self._writes[step], step))

    def reset(self) -> None:
        """Forget every write."""
        self._written = {}
