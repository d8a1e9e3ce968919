"""Run a schedule in torch: the reference for engines, and what calibration runs."""

import torch

from ditc.runtime.errors import PlanError

from .calls import Call, calls_of
from .moving import on_device
from .scheduling import Bucket, Schedule

__all__ = ["TorchSession"]


class TorchSession:
    """A schedule's graphs and slots, run step by step.

    Args:
        schedule: what to run.
        device: where to run it, as torch names it; where the program's weights are if None.
            Arguments have to be there too.

    Raises:
        EngineError: if there is no such device here.
    """

    def __init__(self, schedule: Schedule, device: str | torch.device | None = None) -> None:
        if device is not None:
            schedule = schedule.on(on_device(schedule.program, device))
        self.schedule = schedule
        self._feed = schedule.program.feed()
        self._slots: dict[str, torch.Tensor] = {}
        self._written: dict[str, int] = {}

    def __call__(self, step: int, call: Call | None = None, /, **kwargs: object) -> object:
        """Run one step, or one of its calls.

        Args:
            step: 0-based. Steps go in order; a step that reads a slot needs the one that wrote it.
            call: `cond` or `uncond` where a step makes two calls.
            **kwargs: as the module was captured with.

        Returns:
            What the module returns, in its own structure.

        Raises:
            PlanError: if the schedule has no such step or call, or one that it needs hasn't run.
            CaptureError: if an argument is unlike what was captured, or weights aren't loaded.
        """
        number = self._number(step, call)
        program, run = self.schedule.program, self.schedule.runs[number]
        program.check_loaded()
        inputs = program.bind(kwargs)
        bucket = self.schedule.bucket_of(step, run.call)
        self._check_slots(number, bucket)
        slots = [self._slots[run.read(slot).name] for slot in bucket.reads]
        with torch.no_grad():
            values = bucket.graph_module(*self._feed(inputs), *slots)
        count = len(program.outputs)
        for slot, value in zip(bucket.writes, values[count:], strict=True):
            name = run.written(slot).name
            self._slots[name] = value
            self._written[name] = number
        held = {_storage(value) for value in self._slots.values()}
        return program.unflatten(
            tuple(value.clone() if _storage(value) in held else value for value in values[:count])
        )

    def reset(self) -> None:
        """Forget all slots: the next step has to be step 0."""
        self._slots.clear()
        self._written.clear()

    def _number(self, step: int, call: Call | None) -> int:
        """Return the number of a run, or refuse one that isn't there."""
        calls = calls_of(self.schedule.program.cfg)
        if not 0 <= step < self.schedule.steps:
            raise PlanError(f"step {step}: the plan has steps 0 to {self.schedule.steps - 1}")
        if (call or "") not in calls:
            listed = " and then ".join(repr(name) for name in calls)
            raise PlanError(f"step {step} has no call {call!r}: expected {listed}")
        return step * len(calls) + calls.index(call or "")

    def _check_slots(self, number: int, bucket: Bucket) -> None:
        """Drop what later runs wrote, then check that each slot holds the write it needs."""
        run = self.schedule.runs[number]
        self._written = {name: at for name, at in self._written.items() if at < number}
        for slot in bucket.reads:
            name = run.read(slot).name
            needed = max(at for at in range(number) if name in self._writes(at))
            if self._written.get(name) != needed:
                raise PlanError(
                    f"{run.title} reads slot {name} as {self.schedule.runs[needed].title} leaves "
                    "it, which hasn't run: run the steps in order, starting at 0"
                )

    def _writes(self, number: int) -> set[str]:
        run = self.schedule.runs[number]
        bucket = self.schedule.bucket_of(run.step, run.call)
        return {run.written(slot).name for slot in bucket.writes}


def _storage(value: torch.Tensor) -> int:
    """Return what tells whether two tensors share memory: callers may write to what they get."""
    return value.untyped_storage().data_ptr()
