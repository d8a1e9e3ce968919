"""Record a pipeline's first denoiser call: module, arguments, layout of the CFG halves."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .capturing import capture
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

    The denoiser's stand-in returns ones in the first half of the batch and zeros in the second.
    Guidance makes of them `s` where the first half is conditional, `1 − s` where it is not.
    """

    def __init__(self, module: torch.nn.Module, scheduler: object) -> None:
        self.module = module
        self.scheduler = scheduler
        self.kwargs: Mapping[str, object] | None = None
        self.batch = 0
        self.guided: torch.Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
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

    def _step(self, model_output: torch.Tensor, *_: object, **__: object) -> NoReturn:
        self.guided = model_output
        raise _Stop

    def layout(self) -> CfgLayout | None:
        """Return the layout that the pipeline's guidance shows, None if it leaves marks alone."""
        if self.guided is None or self.batch < 2:
            return None
        guided = self.guided.double()
        if guided.shape[0] == self.batch and torch.equal(guided, _marks(guided)):
            return None
        weight = guided.mean().item()
        mixed = (guided - weight).abs().max().item() <= 1e-6 * max(1.0, abs(weight))
        if not mixed or 0.0 <= weight <= 1.0:
            raise CaptureError(
                "the pipeline mixes the halves of its batch in a way that guidance with a scale "
                "above 1 doesn't: state the layout with cfg='cond-first' or 'uncond-first'"
            )
        return "cond-first" if weight > 1 else "uncond-first"


def _marks(like: torch.Tensor) -> torch.Tensor:
    """Return ones in the first half of the batch and zeros in the second."""
    marks = torch.zeros_like(like)
    marks[: like.shape[0] // 2] = 1
    return marks


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
