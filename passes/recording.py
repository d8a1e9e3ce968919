"""Record a pipeline's first denoiser call: module, arguments, layout of the CFG halves."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .capturing import TIMESTEP, capture
from .program import CfgLayout, Program

__all__ = ["Recording", "record"]


@dataclass(frozen=True, eq=False)
class Recording:
    """What a pipeline did up to its first denoiser call.

    Attributes:
        module: the denoiser.
        kwargs: the arguments of its first call, by name.
        cfg: layout of the halves of classifier-free guidance, None without.
        scheduler: the pipeline's scheduler, its steps set as for the call.
    """

    module: torch.nn.Module
    kwargs: Mapping[str, object]
    cfg: CfgLayout | None
    scheduler: object

    def capture(self) -> Program:
        """Capture the denoiser with the arguments recorded."""
        return capture(self.module, self.kwargs, self.cfg)


NO_MATTER = ("generator", "return_dict")


class _Stop(BaseException):
    """Ends a pipeline's run; no pipeline catches it, as it is no Exception."""


def record(
    pipe: object,
    *,
    denoiser: str = "transformer",
    cfg: CfgLayout | None = None,
    call: Mapping[str, object] | None = None,
    **more: object,
) -> Recording:
    """Run a pipeline up to its first denoiser call.

    Args:
        pipe: a diffusers pipeline, called as `pipe(**call, **more)`.
        denoiser: name of the pipeline's attribute that holds the denoiser.
        cfg: layout of the halves, found by what the pipeline does with them if None.
        call: arguments of the pipeline, as a mapping.
        **more: further arguments of the pipeline.

    Raises:
        CaptureError: if the pipeline has no such denoiser, never calls it, or does with the
            halves what guidance doesn't do.
    """
    module = getattr(pipe, denoiser, None)
    if not isinstance(module, torch.nn.Module) or not callable(pipe):
        raise CaptureError(
            f"{type(pipe).__name__} has no denoiser named {denoiser}: state it with denoiser='...'"
        )
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise CaptureError(f"{type(pipe).__name__} has no scheduler")
    recorder = _Recorder(module, scheduler)
    with recorder.installed(), suppress(_Stop):
        pipe(**(call or {}), **more)
    if recorder.kwargs is None:
        raise CaptureError(f"{type(pipe).__name__} never called its {denoiser}")
    return Recording(module, recorder.kwargs, cfg or recorder.layout(), scheduler)


class _Recorder:
    """Stands in for denoiser and scheduler step; tells halves apart by what reaches the step.

    The denoiser's stand-in returns ones in the first half of the batch, zeros and ones by turns in
    the second. Where halves differ guidance makes `s` of them if the first is conditional, `1 − s`
    if it is not; where both are one it leaves one, or the pipeline does more than guide.
    """

    def __init__(self, module: torch.nn.Module, scheduler: object) -> None:
        self.module = module
        self.scheduler = scheduler
        self.kwargs: Mapping[str, object] | None = None
        self.batch = 0
        self.guided: torch.Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        self._signature = inspect.signature(getattr(self.scheduler, "step"))  # noqa: B009
        with (
            _replaced(self.module, "forward", self._denoise(self.module.forward)),
            _replaced(self.scheduler, "step", self._step),
        ):
            yield

    def _denoise(self, forward: Callable[..., object]) -> Callable[..., object]:
        signature = inspect.signature(forward)

        def stand_in(*args: object, **kwargs: object) -> object:
            if self.kwargs is not None:
                raise CaptureError(
                    "the pipeline calls its denoiser more than once a step, but slots hold what "
                    "one call a step left: guide with both halves in one batch"
                )
            self.kwargs = pytree.tree_map(_kept, _named(signature, args, kwargs))
            return pytree.tree_map(self._marked, forward(*args, **kwargs))

        return stand_in

    def _marked(self, leaf: object) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        self.batch = leaf.shape[0]
        return _marks(leaf)

    def _step(self, model_output: torch.Tensor, *args: object, **kwargs: object) -> NoReturn:
        self.guided = model_output
        given = self._signature.bind(model_output, *args, **kwargs).arguments
        for name, value in given.items():
            default = self._signature.parameters[name].default
            if default is not inspect.Parameter.empty and name not in NO_MATTER:
                _check_default(type(self.scheduler).__name__, name, value, default)
        self._check_timestep(given.get("timestep"))
        raise _Stop

    def _check_timestep(self, stepped: object) -> None:
        """Refuse a denoiser that is told another timestep than the scheduler's own."""
        told = [value for name, value in (self.kwargs or {}).items() if name in TIMESTEP]
        if len(told) != 1 or not isinstance(told[0], torch.Tensor):
            return
        if not isinstance(stepped, torch.Tensor | int | float):
            return
        expected, found = float(stepped), told[0].double().flatten()
        if (found - expected).abs().max().item() > 1e-3 * max(1.0, abs(expected)) + 1.0:
            raise CaptureError(
                f"the pipeline tells its denoiser the timestep {found[0].item():g} where its "
                f"scheduler has {expected:g}, but a bundle tells it the scheduler's: wrap the "
                "denoiser in a module that takes those"
            )

    def layout(self) -> CfgLayout | None:
        """Return the layout that the pipeline's guidance shows, None if it leaves marks alone."""
        if self.guided is None or self.batch < 2:
            return None
        guided = self.guided.double()
        if guided.shape[0] == self.batch and _is_unmixed(guided):
            return None
        ones = (guided - 1).abs() <= 1e-6
        weights = guided[~ones]
        weight = weights.mean().item() if weights.numel() else 1.0
        mixed = ones.any() or guided[0].numel() == 1
        mixed = mixed and bool(((weights - weight).abs() <= 1e-6 * max(1.0, abs(weight))).all())
        if not mixed or 0.0 <= weight <= 1.0:
            raise CaptureError(
                "the pipeline does with its denoiser's output what guidance with a scale above 1 "
                "doesn't, such as turning its sign: wrap the denoiser in a module that does it, or "
                "state the layout with cfg='cond-first' or 'uncond-first'"
            )
        return "cond-first" if weight > 1 else "uncond-first"


def _marks(like: torch.Tensor) -> torch.Tensor:
    """Return ones in the first half of the batch, in the second zeros and ones by turns."""
    marks = torch.zeros(like.shape[0], like[0].numel(), dtype=like.dtype, device=like.device)
    marks[: like.shape[0] // 2] = 1
    marks[:, 1::2] = 1
    return marks.reshape(like.shape)


def _is_unmixed(guided: torch.Tensor) -> bool:
    """Whether marks are as they were made, but for their order."""
    half = guided.shape[0] // 2
    binary = ((guided == 0) | (guided == 1)).all()
    return bool(binary and (guided[:half] == 1).all() and (guided[half:] == 0).any())


def _check_default(scheduler: str, name: str, value: object, default: object) -> None:
    if value is default or (isinstance(value, int | float | str) and value == default):
        return
    raise CaptureError(
        f"the pipeline calls {scheduler}.step with {name}={value!r}, which a bundle's sampler "
        f"doesn't know of, expected {default!r}: leave it out of the pipeline's arguments"
    )


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


def _kept(leaf: object) -> object:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf
