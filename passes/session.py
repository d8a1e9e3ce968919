"""Run a schedule in torch: the reference for engines, and what calibration runs."""

import torch

from ditc.runtime.errors import PlanError

from .scheduling import Bucket, Schedule

__all__ = ["TorchSession"]


class TorchSession:
    """A schedule's graphs and slots, run step by step.

    Args:
        schedule: what to run.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._feed = schedule.program.feed()
        self._slots: dict[str, torch.Tensor] = {}
        self._written: dict[str, int] = {}

    def __call__(self, step: int, **kwargs: object) -> object:
        """Run one step.

        Args:
            step: 0-based. Steps go in order; a step that reads a slot needs the one that wrote it.
            **kwargs: as the module was captured with.

        Returns:
            What the module returns, in its own structure.

        Raises:
            PlanError: if the schedule has no such step, or one that it needs hasn't run.
            CaptureError: if an argument is unlike what was captured, or weights aren't loaded.
        """
        if not 0 <= step < self.schedule.steps:
            raise PlanError(f"step {step}: the plan has steps 0 to {self.schedule.steps - 1}")
        program = self.schedule.program
        program.check_loaded()
        inputs = program.bind(kwargs)
        bucket = self.schedule.bucket_of(step)
        self._check_slots(step, bucket)
        slots = [self._slots[slot.name] for slot in bucket.reads]
        with torch.no_grad():
            values = bucket.graph_module(*self._feed(inputs), *slots)
        count = len(program.outputs)
        for slot, value in zip(bucket.writes, values[count:], strict=True):
            self._slots[slot.name] = value
            self._written[slot.name] = step
        held = {_storage(value) for value in self._slots.values()}
        return program.unflatten(
            tuple(value.clone() if _storage(value) in held else value for value in values[:count])
        )

    def reset(self) -> None:
        """Forget all slots: the next step has to be step 0."""
        self._slots.clear()
        self._written.clear()

    def _check_slots(self, step: int, bucket: Bucket) -> None:
        """Drop what later steps wrote, then check that each slot holds the write it needs."""
        self._written = {name: at for name, at in self._written.items() if at < step}
        for slot in bucket.reads:
            needed = max(at for at in range(step) if slot in self.schedule.bucket_of(at).writes)
            if self._written.get(slot.name) != needed:
                raise PlanError(
                    f"step {step} reads slot {slot.name} as step {needed} leaves it, which hasn't "
                    "run: run the steps in order, starting at 0"
                )


def _storage(value: torch.Tensor) -> int:
    """Return what tells whether two tensors share memory: callers may write to what they get."""
    return value.untyped_storage().data_ptr()
