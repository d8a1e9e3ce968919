"""Bundles attached to pipelines: which step a call is, what is refused and when, and detaching."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, record, schedule
from ditc.runtime import Bundle, NullBackend
from ditc.runtime.diffusers import attach, detach
from ditc.runtime.errors import EngineError

from . import models
from .compiled import workshop
from .pipelines import PIPELINES, STEPS, images


@lru_cache
def compiled(name: str) -> str:
    """Return a bundle of a pipeline's denoiser at full attention."""
    made = PIPELINES[name]
    program = record(made.make(), num_inference_steps=STEPS, **made.call).capture()
    plan = Plan.uniform(program, STEPS, "full", scheduler=None)
    return str(compile_bundle(schedule(program, plan), workshop() / f"attach-{name}", jobs=1))


class Watched(NullBackend):
    """Computes nothing, and is told which steps were run."""


def made(name: str = "DiT", **changes: object) -> tuple[DiffusionPipeline, Bundle, Watched]:
    """Return a pipeline with a bundle attached, whose manifest is changed."""
    backend = Watched()
    bundle = Bundle.open(compiled(name), backend=backend)
    pipe = PIPELINES[name].make()
    attach(pipe, bundle, **changes)
    return pipe, bundle, backend


def run(pipe: DiffusionPipeline, name: str = "DiT", **more: object) -> torch.Tensor:
    return images(pipe, PIPELINES[name].call, **more)


def watched(bundle: Bundle) -> list[tuple[int, str]]:
    """Return a list that each step of a bundle is noted in as it is run."""
    noted: list[tuple[int, str]] = []
    step = bundle.step

    def note(k: int, call: str = "", /, **arrays: object) -> object:
        noted.append((k, call))
        return step(k, call, **arrays)

    bundle.step = note  # type: ignore[method-assign]
    return noted


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        (DDIMScheduler, STEPS),
        (DDPMScheduler, STEPS),
        (DPMSolverMultistepScheduler, STEPS),
        (PNDMScheduler, STEPS - 1),  # which evaluates once more
    ],
)
def test_steps_follow_any_scheduler(scheduler: type, steps: int) -> None:
    pipe, bundle, _ = made()
    pipe.scheduler = scheduler(**({"skip_prk_steps": True} if scheduler is PNDMScheduler else {}))
    noted = watched(bundle)
    for _ in range(2):
        run(pipe, num_inference_steps=steps)
    assert noted == [(step, "") for step in range(STEPS)] * 2


def test_a_scheduler_of_two_evaluations_a_step() -> None:
    pipe, bundle, _ = made("PixArt-Sigma")
    pipe.scheduler = HeunDiscreteScheduler()
    with pytest.raises(EngineError, match="HeunDiscreteScheduler has 5 steps, the bundle's plan 4"):
        run(pipe, "PixArt-Sigma", num_inference_steps=3)
    assert watched(bundle) == []


def test_timesteps_between_integers_are_refused_where_integers_are_wanted() -> None:
    pipe, _, _ = made("PixArt-Sigma")
    pipe.scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    with pytest.raises(EngineError, match=r"timestep is \d+\.\d+, which the bundle has as an int"):
        run(pipe, "PixArt-Sigma", num_inference_steps=STEPS)


def test_calls_of_a_step_follow_each_other() -> None:
    pipe, bundle, _ = made("Wan")
    noted = watched(bundle)
    run(pipe, "Wan")
    assert noted == [(step, call) for step in range(STEPS) for call in ("cond", "uncond")]


def test_a_generation_that_is_stopped_starts_anew() -> None:
    pipe, bundle, _ = made("SD3")
    noted = watched(bundle)

    def stop(pipe: DiffusionPipeline, step: int, timestep: object, kwargs: dict) -> dict:
        pipe._interrupt = step == 1
        return kwargs

    run(pipe, "SD3", callback_on_step_end=stop)
    run(pipe, "SD3")
    assert [step for step, _ in noted] == [0, 1, 0, 1, 2, 3]


def test_a_call_that_fails_in_the_middle_starts_anew() -> None:
    pipe, bundle, _ = made("Wan")
    step, failing = bundle.step, [True]

    def fail(k: int, call: str = "", /, **arrays: object) -> object:
        if failing and (k, call) == (0, "uncond"):
            failing.clear()
            raise KeyboardInterrupt
        return step(k, call, **arrays)

    bundle.step = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(pipe, "Wan")
    noted = watched(bundle)
    run(pipe, "Wan")
    assert noted[0] == (0, "cond")
    assert len(noted) == 2 * STEPS


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("DiT", {"num_inference_steps": 5}, "DDIMScheduler has 5 steps, the bundle's plan 4"),
        ("DiT", {"guidance_scale": 1.0}, r"hidden_states is \[2, 3, 10, 10\], .* guidance is off"),
        ("DiT", {"class_labels": [1]}, "guidance is off, or there are half as many samples"),
        ("DiT", {"class_labels": [1, 2, 3]}, "prompts times images per prompt are of another"),
        ("PixArt-Sigma", {"height": 48}, r"\[2, 3, 12, 10\], .*: it is of another resolution"),
        ("PixArt-Sigma", {"num_images_per_prompt": 2}, "prompts times images per prompt"),
        ("SD3", {"guidance_scale": 1.0}, "guidance is off"),
        ("Wan", {"guidance_scale": 1.0}, "guidance is off, the bundle is for two calls a step"),
        ("Wan", {"num_frames": 9}, "it is of another resolution or length"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    name: str, call: dict[str, object], message: str
) -> None:
    pipe, _, backend = made(name)
    with pytest.raises(EngineError, match=message):
        run(pipe, name, **call)
    assert backend.calls == []


def test_arguments_that_were_not_captured_are_refused() -> None:
    pipe, _, backend = made("SD3")
    latents = {"hidden_states": models.noise(2, 4, 8, 8), "skip_layers": [1]}
    with pytest.raises(EngineError, match=r"argument skip_layers\.0 isn't known"):
        pipe.transformer(**latents)
    with pytest.raises(EngineError, match="encoder_hidden_states is missing, expected a"):
        pipe.transformer(hidden_states=latents["hidden_states"])
    assert backend.calls == []


def test_more_calls_than_were_compiled_are_refused() -> None:
    pipe, bundle, _ = made("DiT")
    pipe.scheduler.set_timesteps(STEPS)
    arrays = {
        info.name: torch.zeros(info.shape, dtype=getattr(torch, info.dtype))
        for info in bundle.manifest.inputs
    }
    arrays["timestep"] += 750
    pipe.transformer(**arrays)
    with pytest.raises(EngineError, match="step 0: the pipeline calls its denoiser more than once"):
        pipe.transformer(**arrays)
    with pytest.raises(EngineError, match="told the timestep 123, which DDIMScheduler doesn't"):
        pipe.transformer(**{**arrays, "timestep": torch.full((4,), 123)})
    pipe.scheduler.set_timesteps(STEPS)
    with pytest.raises(EngineError, match="starts at step 1, the bundle's plan at 0"):
        pipe.transformer(**{**arrays, "timestep": torch.full((4,), 500)})


def test_another_denoiser_may_run_the_other_steps() -> None:
    pipe, bundle, _ = made("SD3", steps=range(2, 2 + STEPS))
    noted, engine = watched(bundle), pipe.transformer
    pipe.scheduler.set_timesteps(8)
    arrays = {
        path: torch.zeros(info.shape, dtype=getattr(torch, info.dtype))
        for info in bundle.manifest.inputs
        for path in [bundle.manifest.arguments.paths[info.name]]
    }
    pipe.scheduler.set_begin_index(2)
    out = engine(**arrays, return_dict=False)[0]
    assert noted == [(0, "")]
    pipe.scheduler.step(out[:1], pipe.scheduler.timesteps[2], arrays["hidden_states"][:1])
    engine(**arrays)
    assert noted == [(0, ""), (1, "")]
    pipe.scheduler.set_timesteps(5)
    with pytest.raises(EngineError, match="has 5 steps, the bundle is for steps 2 to 5"):
        engine(**arrays)
    detach(pipe)
    with pytest.raises(EngineError, match=r"steps 0 to 2 are 3, the bundle has 4: state those"):
        attach(pipe, bundle, steps=range(3))


def test_the_scheduler_of_the_plan_is_wanted_unless_it_is_ignored() -> None:
    pipe, bundle, _ = made()
    detach(pipe)
    arguments = replace(bundle.manifest.arguments, scheduler="DPMSolverMultistepScheduler")
    bundle.manifest = replace(bundle.manifest, arguments=arguments)
    attach(pipe, bundle)
    with pytest.raises(EngineError, match="found with DPMSolverMultistepScheduler, the pipeline"):
        run(pipe)
    detach(pipe)
    attach(pipe, bundle, ignore_scheduler=True)
    assert run(pipe).shape == (2, 40, 40, 3)


def test_attached_and_detached() -> None:
    pipe, bundle, _ = made()
    engine, module = pipe.transformer, pipe.transformer.replaced
    assert (engine.config, engine.dtype, engine.device) == (
        module.config,
        torch.float32,
        torch.device("cpu"),
    )
    assert list(engine.parameters()) == []
    module.to("meta")
    assert engine.device == torch.device("cpu")
    assert run(pipe).shape == (2, 40, 40, 3)
    with pytest.raises(EngineError, match=r"DiTPipeline\.transformer is a bundle's already"):
        attach(pipe, bundle)
    detach(pipe)
    assert pipe.transformer is module
    with pytest.raises(EngineError, match="is no bundle's: nothing to detach"):
        detach(pipe)


def test_half_precision_goes_in_and_out() -> None:
    pipe, bundle, backend = made()
    arrays = {
        info.name: torch.ones(info.shape, dtype=getattr(torch, info.dtype))
        for info in bundle.manifest.inputs
    }
    pipe.scheduler.set_timesteps(STEPS)
    arrays["timestep"] += 749
    arrays["hidden_states"] = arrays["hidden_states"].to(torch.bfloat16)
    assert pipe.transformer(**arrays).sample.dtype == torch.bfloat16
    assert backend.calls[-1][1]["hidden_states"].dtype == np.float32


@pytest.mark.parametrize(
    ("denoiser", "name", "message"),
    [
        ("unet", "DiT", "has no scheduler or no denoiser named unet: state it"),
        ("transformer", "SD3", "the pipeline's denoiser is .*SD3.*, the bundle of .*DiT"),
    ],
)
def test_pipelines_without_that_denoiser(denoiser: str, name: str, message: str) -> None:
    bundle = Bundle.open(compiled("DiT"), backend=NullBackend())
    with pytest.raises(EngineError, match=message):
        attach(PIPELINES[name].make(), bundle, denoiser=denoiser)


def test_a_bundle_that_guides_by_itself() -> None:
    bundle = Bundle.open(compiled("DiT"), backend=NullBackend())
    paths = {"hidden_states": "hidden_states", "timestep": "timestep"}
    arguments = replace(bundle.manifest.arguments, paths=paths)
    bundle.manifest = replace(bundle.manifest, arguments=arguments)
    with pytest.raises(EngineError, match="takes 'class_labels', which no pipeline gives its"):
        attach(PIPELINES["DiT"].make(), bundle)


def test_a_bundle_that_says_nothing_of_arguments() -> None:
    bundle = Bundle.open(compiled("DiT"), backend=NullBackend())
    bundle.manifest = replace(bundle.manifest, arguments=None)
    with pytest.raises(EngineError, match="doesn't say which arguments it takes"):
        attach(PIPELINES["DiT"].make(), bundle)


def test_as_many_samples_as_the_bundle_serves() -> None:
    made = PIPELINES["DiT"]
    program = record(made.make(), num_inference_steps=STEPS, **made.call).capture()
    sched = schedule(program, Plan.uniform(program, STEPS, "full"))
    place = compile_bundle(sched, workshop() / "attach-range", jobs=1, dynamic={"batch": (1, 3)})
    pipe = made.make()
    before = [run(pipe, class_labels=[1] * count) for count in (1, 3)]
    attach(pipe, Bundle.open(place, threads=1))
    for expected, count in zip(before, (1, 3), strict=True):
        found = run(pipe, class_labels=[1] * count)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    with pytest.raises(EngineError, match="a batch of 4 samples, expected 1 to 3"):
        run(pipe, class_labels=[1] * 4)
