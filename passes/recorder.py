"""Stand in for a pipeline's denoiser and scheduler, to see what the pipeline makes of both."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .capturing import TIMESTEP
from .guided_marks import apart, first_weight, is_unmixed, marks_like, unscaled
from .identity import CfgLayout
from .told import Told, told_of

__all__ = ["Recorder", "Stop"]

NO_MATTER = ("generator", "return_dict")
STEPS_SEEN = 3
"""Steps of which the timestep is noted: as many as tell a line from other rules."""
SCALES = "the pipeline scales what guidance makes of the halves"
UNCONDITIONAL = "the pipeline gives its scheduler the variance that is predicted without condition"


class Stop(BaseException):
    """Ends a pipeline's run; no pipeline catches it, as it is no Exception."""


class Stepping(Protocol):
    """What is used of a scheduler."""

    def step(self, *args: object, **kwargs: object) -> object:
        """Return the latents after a step, in a structure of the scheduler's own."""


class Recorder:
    """Stands in for denoiser and scheduler step; tells halves apart by what reaches the step.

    The denoiser's stand-in returns ones for the first half, zeros and ones by turns for the
    second: halves of a batch, or calls of a step. Where halves differ guidance makes `s` of them
    if the first is conditional, `1 − s` if it is not; where both are one it leaves one, or the
    pipeline does more than guide.

    Attributes:
        scheduler: as it was before its first step.
        calls: arguments of each call of the denoiser in the first step that has some.
        first_step: the number of that step.
        obstacles: what the pipeline asks of the scheduler that a table of it doesn't hold.
    """

    def __init__(self, module: torch.nn.Module, scheduler: object) -> None:
        self.module = module
        self.scheduler = scheduler
        self.calls: list[Mapping[str, object]] = []
        self.first_step = 0
        self.obstacles: list[str] = []
        self._given = scheduler
        self._outputs: object = None
        self._batch = 0
        self._guided: torch.Tensor | None = None
        self._variance: torch.Tensor | None = None
        self._points: list[tuple[float, float]] = []
        self._timestep: float | None = None
        self._ghost: Stepping | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the stand-ins in their places, and take them away again."""
        step: Callable[..., object] = getattr(self._given, "step")  # noqa: B009
        self._signature = inspect.signature(step)
        with (
            _replaced(self.module, "forward", self._denoise(self.module.forward)),
            _replaced(self._given, "step", self._step(step)),
        ):
            yield

    def _denoise(self, forward: Callable[..., object]) -> Callable[..., object]:
        signature = inspect.signature(forward)

        def stand_in(*args: object, **kwargs: object) -> object:
            given = _named(signature, args, kwargs)
            self._timestep = _timestep_of(given)
            if self._guided is None:
                if not self.calls:
                    self._outputs = pytree.tree_map(_kept, forward(*args, **kwargs))
                self.calls.append(pytree.tree_map(_kept, given))
            if len(self.calls) > 2:
                raise CaptureError(
                    "the pipeline calls its denoiser more than twice a step, but slots hold what "
                    "one call for each half of guidance left: leave out what adds calls"
                )
            return pytree.tree_map(self._marked, self._outputs)

        return stand_in

    def _marked(self, leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        self._batch = leaf.shape[0]
        return marks_like(leaf, call=len(self.calls) - 1)

    def _step(self, step: Callable[..., object]) -> Callable[..., object]:
        def stand_in(model_output: torch.Tensor, *args: object, **kwargs: object) -> object:
            if not self.calls:
                if self.first_step == 0:
                    self.scheduler = _copied(self._given)
                self.first_step += 1
                return step(model_output, *args, **kwargs)
            bound = self._signature.bind(model_output, *args, **kwargs).arguments
            if self._guided is None:
                self._guided, self._variance = apart(model_output, bound.get("sample"))
                self._note_arguments(bound)
                self._ghost = _copied(self._given)
            self._note_timestep(bound.get("timestep"))
            if len(self._points) >= min(STEPS_SEEN, self._steps_left()):
                raise Stop
            assert self._ghost is not None
            return self._ghost.step(model_output, *args, **kwargs)

        return stand_in

    def _steps_left(self) -> int:
        timesteps = getattr(self._given, "timesteps", None)
        return len(timesteps) - self.first_step if isinstance(timesteps, torch.Tensor) else 1

    def _note_arguments(self, bound: Mapping[str, object]) -> None:
        name = type(self._given).__name__
        for key, value in bound.items():
            default = self._signature.parameters[key].default
            if default is inspect.Parameter.empty or key in NO_MATTER or value is default:
                continue
            if not isinstance(value, int | float | str) or value != default:
                self.obstacles.append(
                    f"the pipeline calls {name}.step with {key}={value!r}, which a bundle's "
                    f"sampler doesn't know of, expected {default!r}"
                )

    def _note_timestep(self, stepped: object) -> None:
        if self._timestep is not None and isinstance(stepped, torch.Tensor | int | float):
            self._points.append((float(stepped), self._timestep))
        else:  # nothing to compare: no need to see further steps
            raise Stop

    def told(self) -> tuple[Told, tuple[str, ...]]:
        """Return what the denoiser is told of time, and why that can't be said, if so."""
        if not self._points:
            return Told(), ()
        rule = told_of(self._points)
        if rule is not None:
            return rule, ()
        timestep, told = self._points[0]
        return Told(), (
            f"the pipeline tells its denoiser the timestep {told:g} where its scheduler has "
            f"{timestep:g}, by a rule that can't be told from {len(self._points)} steps",
        )

    def layout(self, stated: CfgLayout | None) -> tuple[CfgLayout | None, tuple[str, ...]]:
        """Return the layout that the pipeline's guidance shows, None if it leaves marks alone.

        Args:
            stated: what the user says it is, which is believed where the calls allow it.

        Returns:
            The layout, and what the pipeline does beside plain guidance, if so.

        Raises:
            CaptureError: if it can't be told and isn't stated, or a statement can't hold.
        """
        separate = len(self.calls) == 2
        if stated is not None and separate != stated.startswith("separate"):
            raise CaptureError(
                f"cfg is stated as {stated!r}, but the pipeline calls its denoiser "
                f"{'twice' if separate else 'once'} a step"
            )
        try:
            found, obstacles = self._found(separate)
        except CaptureError as error:
            if stated is None:
                raise
            return stated, (str(error),)
        return stated or found, obstacles

    def _found(self, separate: bool) -> tuple[CfgLayout | None, tuple[str, ...]]:
        if self._guided is None or (not separate and self._batch < 2):
            return None, ()
        guided = self._guided.double()
        if not separate and guided.shape[0] == self._batch and is_unmixed(guided):
            return None, ()
        plain = first_weight(guided, separate)
        weight = plain if plain is not None else first_weight(unscaled(guided), separate)
        if weight is None or 0.0 <= weight <= 1.0:
            way = "'separate'" if separate else "'cond-first' or 'uncond-first'"
            raise CaptureError(
                "the pipeline does with its denoiser's output what guidance with a scale above 1 "
                "doesn't, such as turning its sign: wrap the denoiser in a module that does it, or "
                f"state the layout with cfg={way}"
            )
        first: CfgLayout = "separate" if separate else "cond-first"
        second: CfgLayout = "separate-uncond-first" if separate else "uncond-first"
        layout = first if weight > 1 else second
        obstacles = [] if plain is not None else [SCALES]
        if self._variance is not None and not separate:
            conditional = bool((self._variance[: self._batch // 2] == 1).all())
            obstacles += [] if conditional == (layout == first) else [UNCONDITIONAL]
        return layout, tuple(obstacles)


def _timestep_of(given: Mapping[str, object]) -> float | None:
    told = [value for name, value in given.items() if name in TIMESTEP]
    if len(told) != 1 or not isinstance(told[0], torch.Tensor) or not told[0].numel():
        return None
    return float(told[0].flatten()[0])


def _named(
    signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Return a call's arguments by name, those that `**kwargs` collects among them."""
    named = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and named.get(parameter.name):
            raise CaptureError(
                f"the denoiser takes *{parameter.name}, which have no names: record one whose "
                "arguments all do"
            )
    return named


@contextmanager
def _replaced(owner: object, name: str, stand_in: object) -> Iterator[None]:
    """Put a stand-in in the place of a method of one object, and take it away again."""
    missing = object()
    own = vars(owner).get(name, missing)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        if own is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _copied(scheduler: object) -> Stepping:
    """Return a scheduler in the same state, its own step in place of a stand-in."""
    made: Stepping = object.__new__(type(scheduler))  # type: ignore[assignment]
    state = {name: value for name, value in vars(scheduler).items() if name != "step"}
    vars(made).update(copy.deepcopy(state))
    return made


def _kept(leaf: object) -> object:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf
