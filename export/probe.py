"""Probe a diffusers scheduler: run copies of it on chosen latents and model outputs.

Schedulers act element by element, so that every x_k and m_k can be given a coordinate of its own,
one element of a tensor, and a single run answers what each step makes of each of them:

    x_{k+1} = sum_i latents[k, i] * x_i + sum_i outputs[k, i] * m_i + noise

A scheduler of `variance_type="learned_range"` takes the noise's variance from the second half of
the model's channels: it is asked with -1 and with 1 there, for the least and the most it may be.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.torch_utils import randn_tensor

from ditc.runtime.errors import LoweringError

__all__ = ["OTHERWISE", "Array", "Probe", "Response", "Run", "Scheduler", "prepared"]

SEED = 0
NOISE_SHAPE = (2, 5, 3, 7)
OWN_KWARGS = ("self", "model_output", "timestep", "sample", "generator", "return_dict")
FLAGS: dict[str, tuple[tuple[object, ...], str]] = {
    "clip_sample": ((True,), "clamps the predicted sample: build it with clip_sample=False"),
    "thresholding": ((True,), "rescales the predicted sample: build it with thresholding=False"),
    "variance_type": (
        ("learned", "learned_range"),
        "takes the variance from the model in its own way: build it with a fixed variance",
    ),
}
ATTACH = "compile without a sampler (--no-sampler) and attach the bundle to its pipeline"
OTHERWISE = (
    "use one such as DDIM, DPMSolverMultistep, UniPCMultistep or FlowMatchEulerDiscrete, or "
    f"{ATTACH}"
)

Array = npt.NDArray[np.float64]
Step = Callable[[int, torch.Tensor], torch.Tensor]


@runtime_checkable
class Scheduler(Protocol):
    """What every diffusers scheduler has; what only some have is used where it is found."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Set the schedule and forget any run."""

    def step(
        self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor
    ) -> object:
        """Return the latents after a step; first in a tuple where called with return_dict=False."""


@dataclass(frozen=True)
class Response:
    """What the steps of a scheduler answer.

    Attributes:
        scale: [T], the model's input for latents of 1.
        latents: [T, T], row k the share of each x_i in x_{k+1}.
        outputs: [T, T], row k the share of each m_i in x_{k+1}.
        noise: [T, N], x_{k+1} where all latents and model outputs are zero.
        draws: T of [N], the standard normal noise drawn in each step, None where it draws none.
        most_noise: as `noise`, where the model predicts 1 for the variance and -1 there; None
            where the model doesn't predict it.
    """

    scale: Array
    latents: Array
    outputs: Array
    noise: Array
    draws: list[Array | None]
    most_noise: Array | None


@dataclass(frozen=True)
class Run:
    """One run: what the model was given, the latents after each step, the noise drawn in it."""

    inputs: list[torch.Tensor]
    latents: list[torch.Tensor]
    draws: list[torch.Tensor | None]


def prepared(scheduler: Scheduler, steps: int) -> Scheduler:
    """Return a copy on the CPU, set to `steps` model evaluations and at the start of its run.

    Raises:
        LoweringError: if it is set to or makes another number of evaluations, or is under way in
            a run that can't be started anew.
    """
    ready = copy.deepcopy(scheduler)
    if not _is_set(scheduler):
        _set(ready, steps)
        found = f"evaluates the model {len(ready.timesteps)} times when set to {steps} steps"
    else:
        found = f"is set to {len(scheduler.timesteps)} model evaluations"
        if _is_under_way(scheduler):
            _restart(ready)
    if len(ready.timesteps) != steps:
        raise LoweringError(
            f"{type(scheduler).__name__} {found}, expected {steps}: call its set_timesteps first, "
            "then pass steps=len(scheduler.timesteps)"
        )
    for key, value in vars(ready).items():
        if isinstance(value, torch.Tensor):
            setattr(ready, key, value.cpu())
    if hasattr(ready, "set_begin_index"):
        ready.set_begin_index(0)
    return ready


def _is_set(scheduler: Scheduler) -> bool:
    if getattr(scheduler, "custom_timesteps", False):
        return True
    count = getattr(scheduler, "num_inference_steps", None)
    config: Mapping[str, object] = getattr(scheduler, "config", {})
    if count is None or count != config.get("num_train_timesteps"):
        return count is not None
    # Heun's and some more set all training steps when they are built.
    built = getattr(type(scheduler), "from_config", lambda _: None)(config)
    return bool(getattr(built, "num_inference_steps", None) != count)


def _is_under_way(scheduler: Scheduler) -> bool:
    started = getattr(scheduler, "step_index", None) is not None
    counted = bool(getattr(scheduler, "counter", 0))
    return started or counted or bool(getattr(scheduler, "begin_index", 0))


def _set(scheduler: Scheduler, steps: int) -> None:
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:
        raise LoweringError(
            f"{type(scheduler).__name__}.set_timesteps({steps}) raised {_told(error)}; "
            "call set_timesteps on the scheduler with what it needs, then pass it on"
        ) from error


def _restart(scheduler: Scheduler) -> None:
    """Set a scheduler anew, if that leads to the schedule that it has."""
    timesteps, sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
    _set(scheduler, getattr(scheduler, "num_inference_steps", 0))
    same = torch.equal(timesteps.cpu(), scheduler.timesteps)
    if same and isinstance(sigmas, torch.Tensor):
        same = torch.equal(sigmas.cpu(), getattr(scheduler, "sigmas", sigmas))
    if not same:
        raise LoweringError(
            f"{type(scheduler).__name__} is in the middle of a run, expected one that is only "
            "set: call its set_timesteps again, as before that run"
        )


class Probe:
    """Runs a prepared scheduler, each time on a copy and with the same seed.

    Raises:
        LoweringError: if `step_kwargs` names what the scheduler's `step` doesn't take.
    """

    def __init__(self, scheduler: Scheduler, step_kwargs: Mapping[str, object]) -> None:
        self.scheduler = scheduler
        self.name = type(scheduler).__name__
        self.steps = len(scheduler.timesteps)
        self.kwargs: dict[str, object] = {**step_kwargs, "return_dict": False}
        names = list(inspect.signature(scheduler.step).parameters)
        self.takes_generator = "generator" in names
        config: Mapping[str, object] = getattr(scheduler, "config", {})
        self.learns_variance = config.get("variance_type") == "learned_range"
        allowed = [name for name in names if name not in OWN_KWARGS]
        for key in step_kwargs:
            if key not in allowed:
                raise LoweringError(f"{self.name}.step takes {allowed}, not step_kwargs {key!r}")

    def run(self, first: torch.Tensor, choose: Step, model: Step) -> Run:
        """Run all steps; step k goes on from `choose(k, latents the step before returned)`.

        Raises:
            LoweringError: if the scheduler raises, or draws noise that can't be drawn again.
        """
        scheduler = copy.deepcopy(self.scheduler)
        generator = torch.Generator().manual_seed(SEED)
        kwargs = {**self.kwargs, **({"generator": generator} if self.takes_generator else {})}
        run = Run([], [], [])
        latents = first
        for k, timestep in enumerate(scheduler.timesteps):
            latents = choose(k, latents)
            before = generator.get_state()
            try:
                scaled, latents = _step(scheduler, timestep, latents, k, model, kwargs)
            except Exception as error:
                raise LoweringError(
                    f"{self.name} can't be probed, step {k} raised {_told(error)}; {self.remedy()}"
                ) from error
            run.inputs.append(scaled)
            run.latents.append(latents)
            run.draws.append(self._drawn(k, before, generator, latents))
        return run

    def _drawn(
        self, k: int, before: torch.Tensor, generator: torch.Generator, like: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the noise that a float32 step drew, drawn once more, or None if it drew none."""
        if like.dtype != torch.float32 or torch.equal(before, generator.get_state()):
            return None
        again = torch.Generator()
        again.set_state(before)
        noise: torch.Tensor = randn_tensor(like.shape, generator=again, dtype=like.dtype)
        if not torch.equal(again.get_state(), generator.get_state()):
            raise LoweringError(
                f"{self.name} step {k} draws other noise than one tensor of the latents' shape, "
                f"which a table can't hold; {OTHERWISE}"
            )
        return noise

    def answers(self, latents: Array, outputs: Array) -> tuple[Array, Array]:
        """Return model inputs and next latents [T, N] to latents and outputs [T, N], less noise."""
        given = self._free_run(latents, outputs)
        if not self.takes_generator:
            return _stack(given.inputs), _stack(given.latents)
        still = self._free_run(np.zeros_like(latents), np.zeros_like(outputs))
        return _stack(given.inputs), _stack(given.latents) - _stack(still.latents)

    def _free_run(self, latents: Array, outputs: Array) -> Run:
        x = torch.from_numpy(latents)[:, None, :, None, None]
        m = torch.from_numpy(outputs)[:, None, :, None, None]
        return self.run(x[0], lambda k, _: x[k], lambda k, _: self._told(m[k], 0.0))

    def _told(self, output: torch.Tensor, variance: float) -> torch.Tensor:
        """Return a model's whole output, with its prediction of the variance if it has one."""
        if not self.learns_variance:
            return output
        return torch.cat([output, torch.full_like(output, variance)], dim=1)

    def response(self) -> Response:
        """Return the answers to unit vectors, in float64, and to noise alone, in float32."""
        unit = np.eye(2 * self.steps)
        inputs, answers = self.answers(unit[: self.steps], unit[self.steps :])
        zeros = torch.zeros(NOISE_SHAPE)
        noise = self.run(zeros, lambda *_: zeros, lambda *_: self._told(zeros, -1.0))
        most = None
        if self.learns_variance:
            most = self.run(zeros, lambda *_: zeros, lambda *_: self._told(zeros, 1.0))
        return Response(
            scale=np.diagonal(inputs).copy(),
            latents=answers[:, : self.steps],
            outputs=answers[:, self.steps :],
            noise=_stack(noise.latents),
            draws=[None if draw is None else _flat(draw) for draw in noise.draws],
            most_noise=None if most is None else _stack(most.latents),
        )

    def remedy(self) -> str:
        """Return which flag of the scheduler's config may stand in the way, and what to do."""
        config: Mapping[str, object] = getattr(self.scheduler, "config", {})
        for flag, (values, remedy) in FLAGS.items():
            if config.get(flag) in values:
                return f"its config {flag}={config[flag]!r} {remedy}, or {ATTACH}"
        return OTHERWISE


def _step(
    scheduler: Scheduler,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    k: int,
    model: Step,
    kwargs: Mapping[str, object],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's input and the latents after the step; torch's own seed stays untouched."""
    scale: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    scale = getattr(scheduler, "scale_model_input", None)
    step: Callable[..., tuple[torch.Tensor, ...]] = scheduler.step  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        scaled = latents if scale is None else scale(latents, timestep)
        return scaled, step(model(k, scaled), timestep, latents, **kwargs)[0]


def _told(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())})"


def _flat(tensor: torch.Tensor) -> Array:
    return tensor.reshape(-1).double().numpy()


def _stack(tensors: list[torch.Tensor]) -> Array:
    return np.stack([_flat(tensor) for tensor in tensors])
