"""Tell which step, and which of its calls, a denoiser in a pipeline is called for."""

from dataclasses import dataclass

from .calls import calls_of
from .errors import EngineError
from .manifest import Manifest

__all__ = ["Moment", "StepCounter"]

CLOSE = 1e-3


@dataclass(frozen=True)
class Moment:
    """Where a pipeline is when it calls its denoiser.

    Attributes:
        scheduler: class name of its scheduler.
        timesteps: all that the scheduler has.
        generation: is another object in every generation.
        index: of the step, as the scheduler says; None if it keeps none.
        told: the timestep that the denoiser is told, None if it is told none.
        guided: whether there is guidance, None if the pipeline doesn't say.
    """

    scheduler: str
    timesteps: tuple[float, ...]
    generation: object
    index: int | None
    told: float | None
    guided: bool | None


class StepCounter:
    """Counts nothing where a scheduler says where it is, so that it is right after interruptions.

    Args:
        manifest: says steps and calls.
        steps: which of the pipeline's steps call the denoiser; all if None.
        ignore_scheduler: run with another scheduler than the plan was found with.
    """

    def __init__(
        self, manifest: Manifest, steps: range | None, *, ignore_scheduler: bool = False
    ) -> None:
        arguments = manifest.arguments
        self._manifest = manifest
        self._steps = steps
        self._range = range(manifest.steps) if steps is None else steps
        self._scheduler = None if arguments is None or ignore_scheduler else arguments.scheduler
        self._calls = calls_of(manifest.cfg)
        self._generation: object = None
        self._last = -1
        self._made = 0

    def next(self, moment: Moment) -> tuple[int, str]:
        """Return the bundle's step and call.

        Raises:
            EngineError: before the first step if the generation isn't one that the bundle is for;
                later if calls are missing or too many.
        """
        fresh = moment.generation is not self._generation
        if fresh:
            self._check(moment)
        last = -1 if fresh else self._last
        made = 0 if fresh else self._made
        index = self._index(moment, last, made)
        if index not in self._range:
            raise EngineError(
                f"the denoiser is called at step {index} of the pipeline, the bundle is for steps "
                f"{self._range.start} to {self._range.stop - 1}"
            )
        if last < 0 and index != self._range.start:
            raise EngineError(
                f"the pipeline starts at step {index}, the bundle's plan at {self._range.start}: "
                "steps that are left out, as with a strength below 1, leave nothing to share"
            )
        if index != last:
            self._check_complete(last, made)
            made = 0
        if made == len(self._calls):
            times = "once" if made == 1 else "twice"
            raise EngineError(
                f"step {index}: the pipeline calls its denoiser more than {times}, the bundle's "
                f"CFG layout is {self._manifest.cfg or 'none'}: call it as it was recorded"
            )
        self._generation, self._last, self._made = moment.generation, index, made + 1
        return index - self._range.start, self._calls[made]

    def _check(self, moment: Moment) -> None:
        """Refuse a generation by what is known before its first step."""
        found, expected = len(moment.timesteps), self._manifest.steps
        if self._steps is None and found != expected:
            raise EngineError(
                f"{moment.scheduler} has {found} steps, the bundle's plan {expected}: call the "
                f"pipeline with num_inference_steps for {expected} evaluations of its denoiser"
            )
        if self._steps is not None and found < self._steps.stop:
            raise EngineError(
                f"{moment.scheduler} has {found} steps, the bundle is for steps "
                f"{self._steps.start} to {self._steps.stop - 1}"
            )
        if self._scheduler not in (None, moment.scheduler):
            raise EngineError(
                f"the plan was found with {self._scheduler}, the pipeline has {moment.scheduler}: "
                "use that one, or attach with ignore_scheduler=True"
            )
        if len(self._calls) == 2 and moment.guided is False:
            raise EngineError(
                "guidance is off, the bundle is for two calls a step: give a guidance scale "
                "above 1, or record and compile the pipeline without guidance"
            )

    def _index(self, moment: Moment, last: int, made: int) -> int:
        if moment.index is not None:
            return moment.index
        if moment.told is None:
            return last + (made == len(self._calls) or last < 0)
        near = [
            index
            for index, timestep in enumerate(moment.timesteps)
            if abs(timestep - moment.told) <= CLOSE * max(1.0, abs(timestep))
        ]
        if not near:
            raise EngineError(
                f"the denoiser is told the timestep {moment.told:g}, which {moment.scheduler} "
                "doesn't have, and it keeps no index: use a scheduler that does, such as "
                "DPMSolverMultistepScheduler"
            )
        expected = last if made < len(self._calls) else last + 1
        return expected if expected in near else near[0]

    def _check_complete(self, last: int, made: int) -> None:
        if last >= 0 and made < len(self._calls):
            raise EngineError(
                f"step {last}: the pipeline called its denoiser once, the bundle's CFG layout is "
                f"{self._manifest.cfg}: call it with guidance"
            )
