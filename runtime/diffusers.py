"""Put a bundle in the place of a diffusers pipeline's denoiser: the one runtime file with torch.

>>> attach(pipe, Bundle.open("bundle/"))
>>> images = pipe(prompt, num_inference_steps=20).images
>>> detach(pipe)

The pipeline, its scheduler, callbacks and all stay as they are; only the denoiser's calls go to the
engine.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch.utils import _pytree as pytree

from .bundle import Bundle
from .call_inputs import CallInputs
from .engine import Array
from .errors import EngineError
from .step_counter import Moment, StepCounter

__all__ = ["attach", "detach"]


def attach(
    pipe: object,
    bundle: Bundle,
    *,
    denoiser: str = "transformer",
    steps: range | None = None,
    ignore_scheduler: bool = False,
) -> None:
    """Put a bundle's engine in the place of a pipeline's denoiser, until `detach`.

    The denoiser itself is kept for `detach`, and for what pipelines read of it beside calling it;
    its weights aren't used any more, so that they may be moved to the `meta` device.

    Args:
        pipe: a diffusers pipeline.
        bundle: compiled from that denoiser, as `record` captured it from that pipeline.
        denoiser: name of the pipeline's attribute that holds the denoiser.
        steps: which of the pipeline's steps call it, where another denoiser runs the others.
        ignore_scheduler: run with another scheduler than the plan was found with.

    Raises:
        EngineError: if the pipeline has no such denoiser, or one of another model; the bundle
            doesn't say where arguments go; or there are other than `bundle.steps` steps. What a
            call does wrong, as another resolution, batch, number of steps or guidance, is an
            EngineError before the first step.
    """
    module = getattr(pipe, denoiser, None)
    if not isinstance(module, torch.nn.Module) or not hasattr(pipe, "scheduler"):
        raise EngineError(
            f"{type(pipe).__name__} has no scheduler or no denoiser named {denoiser}: state it "
            "with denoiser='...'"
        )
    if isinstance(module, EngineModule):
        raise EngineError(
            f"{type(pipe).__name__}.{denoiser} is a bundle's already: detach it first"
        )
    arguments = bundle.manifest.arguments
    if arguments is None:
        raise EngineError("the bundle doesn't say which arguments it takes: compile it again")
    _check_model(bundle, module)
    strangers = [i.name for i in bundle.manifest.inputs if i.name not in arguments.paths]
    if strangers:
        raise EngineError(
            f"the bundle takes {strangers[0]!r}, which no pipeline gives its denoiser: compile it "
            "without, as with guidance left to the pipeline"
        )
    if steps is not None and len(steps) != bundle.steps:
        raise EngineError(
            f"steps {steps.start} to {steps.stop - 1} are {len(steps)}, the bundle has "
            f"{bundle.steps}: state those that call {denoiser}"
        )
    counter = StepCounter(bundle.manifest, steps, ignore_scheduler=ignore_scheduler)
    setattr(pipe, denoiser, EngineModule(pipe, module, bundle, counter))


def detach(pipe: object, *, denoiser: str = "transformer") -> None:
    """Put the denoiser back.

    Raises:
        EngineError: if no bundle is in its place.
    """
    module = getattr(pipe, denoiser, None)
    if not isinstance(module, EngineModule):
        raise EngineError(f"{type(pipe).__name__}.{denoiser} is no bundle's: nothing to detach")
    setattr(pipe, denoiser, module.replaced)


class EngineModule(torch.nn.Module):
    """Stands in for a denoiser: what is asked of it goes to the denoiser, calls go to a bundle.

    Attributes:
        bundle: what computes.
    """

    def __init__(
        self, pipe: object, module: torch.nn.Module, bundle: Bundle, counter: StepCounter
    ) -> None:
        super().__init__()
        self.bundle = bundle
        self._held = (pipe, module)  # in a tuple, so that neither is a submodule
        self._counter = counter
        assert bundle.manifest.arguments is not None
        self._inputs = CallInputs(bundle.manifest, bundle.manifest.arguments)
        self._stacked = frozenset(bundle.manifest.arguments.stacked)
        self._place = (_of(module, "device"), _of(module, "dtype"))
        forward: Callable[..., object] = module.forward
        self._signature = inspect.signature(forward)

    @property
    def device(self) -> object:
        """The device that the denoiser was on."""
        return self._place[0]

    @property
    def dtype(self) -> object:
        """The dtype that the denoiser had."""
        return self._place[1]

    @property
    def replaced(self) -> torch.nn.Module:
        """The denoiser in whose place it is."""
        return self._held[1]

    def __getattr__(self, name: str) -> torch.Tensor | torch.nn.Module:
        """Return what the denoiser has by that name, such as its config."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found: torch.Tensor | torch.nn.Module = getattr(self._held[1], name)
            return found

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the engine at the step that the pipeline's scheduler is at.

        Raises:
            EngineError: if the call isn't as it was captured, or out of turn.
        """
        named = self._named(args, kwargs)
        returns_dict = named.pop("return_dict", self._default("return_dict"))
        leaves = dict(_flat(named, self._stacked))
        arrays = self._inputs.arrays({path: _numpy(leaf) for path, leaf in leaves.items()})
        told, like = (self._leaf(leaves, role) for role in ("timestep", "latents"))
        step, call = self._counter.next(_moment(self._held[0], told))
        outputs = self.bundle.step(step, call, **arrays)
        found = outputs.values() if isinstance(outputs, Mapping) else (outputs,)
        tensors = tuple(_tensor(array, like) for array in found)
        return self._returned(tensors, returns_dict)

    def _returned(self, tensors: tuple[torch.Tensor, ...], returns_dict: object) -> object:
        """Return outputs as the denoiser does: itself, in a tuple, or in diffusers' output."""
        if self._stacked:
            samples = list(tensors[0].unbind(0))
            return Transformer2DModelOutput(sample=samples) if returns_dict else (samples,)
        if returns_dict is None:  # the denoiser knows of no such argument
            return tensors[0] if len(tensors) == 1 else tensors
        if not returns_dict:
            return tensors
        if len(tensors) > 1:
            raise EngineError(
                f"the denoiser has {len(tensors)} outputs, whose names only it knows: call it with "
                "return_dict=False"
            )
        return Transformer2DModelOutput(sample=tensors[0])

    def _leaf(self, leaves: Mapping[str, object], role: str) -> torch.Tensor | None:
        path = self._inputs.path_of(role)
        leaf = None if path is None else leaves[path]
        return leaf if isinstance(leaf, torch.Tensor) else None

    def _named(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        named = dict(self._signature.bind(*args, **kwargs).arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name, {}))
        return named

    def _default(self, name: str) -> object:
        parameter = self._signature.parameters.get(name)
        return None if parameter is None else parameter.default


def _check_model(bundle: Bundle, module: torch.nn.Module) -> None:
    found = f"{type(module).__module__}.{type(module).__qualname__}"
    if found != bundle.manifest.model.class_name:
        raise EngineError(
            f"the pipeline's denoiser is {found}, the bundle of {bundle.manifest.model.class_name}:"
            " attach it to the pipeline that it was compiled from"
        )


def _moment(pipe: object, told: torch.Tensor | None) -> Moment:
    """Say where a pipeline is."""
    scheduler: object = getattr(pipe, "scheduler")  # noqa: B009
    timesteps: torch.Tensor = getattr(scheduler, "timesteps")  # noqa: B009
    guided = None
    with suppress(Exception):  # pipelines of which it is a property that isn't set yet
        guided = getattr(pipe, "do_classifier_free_guidance", None)
    return Moment(
        scheduler=type(scheduler).__name__,
        timesteps=tuple(timesteps.tolist()),
        generation=timesteps,
        index=_index(scheduler),
        told=None if told is None else float(told.flatten()[0]),
        guided=guided if isinstance(guided, bool) else None,
    )


def _index(scheduler: object) -> int | None:
    """Return the step that a scheduler is at, None if it keeps none."""
    if not hasattr(scheduler, "step_index"):
        return None
    index = getattr(scheduler, "step_index", None)
    begin = getattr(scheduler, "begin_index", None)
    return int(index if index is not None else begin or 0)


def _flat(named: Mapping[str, object], stacked: frozenset[str]) -> Iterator[tuple[str, object]]:
    """Yield arguments by dotted path, lists of samples as one tensor each."""
    whole = {
        name: torch.stack(list(value))
        if name in stacked and isinstance(value, list | tuple)
        else value
        for name, value in named.items()
    }
    leaves, _ = pytree.tree_flatten_with_path(whole)
    for keys, leaf in leaves:
        yield ".".join(_text(key) for key in keys), leaf


def _text(key: object) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _numpy(leaf: object) -> object:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    held = leaf.detach().cpu()
    return (held.float() if held.dtype == torch.bfloat16 else held).numpy()


def _tensor(array: Array, like: torch.Tensor | None) -> torch.Tensor:
    made = torch.from_numpy(np.asarray(array))
    return made if like is None else made.to(device=like.device, dtype=like.dtype)


def _of(module: torch.nn.Module, name: str) -> object:
    first = next(module.parameters(), None)
    return getattr(module, name, None if first is None else getattr(first, name))
