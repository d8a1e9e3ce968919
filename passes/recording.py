"""Record a pipeline's denoiser calls in a step: module, arguments, layout of the halves."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .arguments import flatten
from .capturing import capture
from .graphs import dtype_name
from .identity import CfgLayout, in_batch
from .program import Program
from .recorder import Recorder, Stop
from .told import Told
from .unloaded import Weights, standing_in

__all__ = ["Recording", "record"]


@dataclass(frozen=True, eq=False)
class Recording:
    """What a pipeline did in the first step that calls the denoiser.

    Attributes:
        module: the denoiser.
        kwargs: the arguments of its call, by name; of the conditional call where there are two.
        cfg: layout of the halves of classifier-free guidance, None without.
        scheduler: the pipeline's scheduler, its steps set as for the call.
        unconditional: the arguments of the unconditional call where a step makes two, else None.
        told: how the timestep that the denoiser is told follows from the scheduler's.
        obstacles: what the pipeline does around the denoiser that a bundle's own loop doesn't;
            the denoiser can be compiled and put back into the pipeline all the same.
        first_step: the first of the pipeline's steps that calls the denoiser.
        weights: where the values of weights on the meta device lie, None if all are loaded.
        vae: the pipeline's autoencoder, None if it has none of that name.
    """

    module: torch.nn.Module
    kwargs: Mapping[str, object]
    cfg: CfgLayout | None
    scheduler: object
    unconditional: Mapping[str, object] | None = None
    told: Told = field(default_factory=Told)
    obstacles: tuple[str, ...] = ()
    first_step: int = 0
    weights: Weights | None = None
    vae: torch.nn.Module | None = None

    def __repr__(self) -> str:
        """Return denoiser, layout and scheduler: no tensor."""
        names = ", ".join(self.kwargs)
        return (
            f"Recording({type(self.module).__name__}({names}), cfg {self.cfg!r}, "
            f"{type(self.scheduler).__name__})"
        )

    def capture(self) -> Program:
        """Capture the denoiser with the arguments recorded."""
        return capture(
            self.module,
            self.kwargs,
            self.cfg,
            unconditional=self.unconditional,
            told=self.told,
            weights=self.weights,
        )

    def sampler(self) -> object:
        """Return the scheduler, for a bundle or a search that samples by itself.

        Raises:
            CaptureError: if the pipeline does more around its denoiser than that.
        """
        if self.obstacles:
            raise CaptureError(
                f"{self.obstacles[0]}: compile without a sampler, and put the bundle into the "
                "pipeline with ditc.runtime.diffusers.attach"
            )
        return self.scheduler

    def batched(self) -> "Recording":
        """Return the recording with the two calls of a step made one of both, conditional first.

        A plan that is found with it holds for the two calls too.

        Raises:
            CaptureError: if the unconditional call comes first, so that it can take nothing from
                the other.
        """
        if self.cfg is None or in_batch(self.cfg):
            return self
        if self.cfg == "separate-uncond-first" or self.unconditional is None:
            raise CaptureError(
                "the pipeline calls the denoiser for the unconditional half first: there is no "
                "plan for both calls that holds for both halves in one batch"
            )
        both = pytree.tree_map(_joined, dict(self.kwargs), dict(self.unconditional))
        return replace(self, kwargs=both, cfg="cond-first", unconditional=None)


def record(
    pipe: object,
    *,
    denoiser: str = "transformer",
    cfg: CfgLayout | None = None,
    call: Mapping[str, object] | None = None,
    weights: Weights | None = None,
    **more: object,
) -> Recording:
    """Run a pipeline up to the first step that calls the denoiser.

    Args:
        pipe: a diffusers pipeline, called as `pipe(**call, **more)`.
        denoiser: name of the pipeline's attribute that holds the denoiser. A pipeline with two
            denoisers is recorded once for each.
        cfg: layout of the halves, found by what the pipeline does with them if None.
        call: arguments of the pipeline, as a mapping.
        weights: where the denoiser's weights lie if they are on the meta device: nothing of it is
            computed then.
        **more: further arguments of the pipeline.

    Raises:
        CaptureError: if the pipeline has no such denoiser, never calls it, calls it more than
            twice a step or with arguments of two kinds, or does with the halves what guidance
            doesn't do.
    """
    module = getattr(pipe, denoiser, None)
    if not isinstance(module, torch.nn.Module) or not callable(pipe):
        raise CaptureError(
            f"{type(pipe).__name__} has no denoiser named {denoiser}: state it with denoiser='...'"
        )
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise CaptureError(f"{type(pipe).__name__} has no scheduler")
    recorder = Recorder(module, scheduler)
    with standing_in(module), recorder.installed(), suppress(Stop):
        pipe(**(call or {}), **more)
    if not recorder.calls:
        raise CaptureError(f"{type(pipe).__name__} never called its {denoiser}")
    layout, obstacles = recorder.layout(cfg)
    told, doubts = recorder.told()
    first = recorder.calls[0]
    second = recorder.calls[1] if len(recorder.calls) > 1 else None
    if second is not None:
        _check_alike(first, second)
    if layout == "separate-uncond-first" and second is not None:
        first, second = second, first
    vae = getattr(pipe, "vae", None)
    return Recording(
        module=module,
        kwargs=first,
        cfg=layout,
        scheduler=recorder.scheduler,
        unconditional=second,
        told=told,
        obstacles=(*obstacles, *doubts, *recorder.obstacles),
        first_step=recorder.first_step,
        weights=weights,
        vae=vae if isinstance(vae, torch.nn.Module) else None,
    )


def _check_alike(first: Mapping[str, object], second: Mapping[str, object]) -> None:
    """Refuse two calls of a step that no one graph serves."""
    one, other = (dict(flatten(call)) for call in (first, second))
    for path in sorted({*one, *other}):
        found, expected = _kind(other.get(path)), _kind(one.get(path))
        if found != expected:
            raise CaptureError(
                f"the denoiser's two calls in a step differ in {path}, which is {expected} in the "
                f"first and {found} in the second, so that no graph serves both: give prompts and "
                "negative prompts of one length"
            )


def _kind(leaf: object) -> str:
    """Return what messages call an argument: a tensor's dtype and shape, else the value."""
    if isinstance(leaf, torch.Tensor):
        return f"{dtype_name(leaf.dtype)} {list(leaf.shape)}"
    return repr(leaf)


def _joined(first: object, second: object) -> object:
    """Return the halves as one batch; what has no batch is the same in both."""
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return first
    if first.dim() == 0 or first is second:
        return first
    return torch.cat([first, second])
