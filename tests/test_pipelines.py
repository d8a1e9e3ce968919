"""Whole diffusers pipelines: as they are, and with a bundle in the place of their denoiser."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    WanPipeline,
)
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, Recording, Window, record, schedule
from ditc.runtime import Bundle
from ditc.runtime.diffusers import attach, detach
from ditc.tools.zoo_reference import Intercepted

from .models import noise
from .pipelines import PIPELINES, STEPS, embeds, flux, images, quiet, transformer

CLOSE = 1e-3
METHODS = ("full", "asc", "wa-rs", "wa-rs+asc", "ast")


def mixed(program: Program, seed: int) -> Plan:
    draw = random.Random(seed)
    shortest = min(s.tokens - s.text[1] + s.text[0] for s in program.sites if s.eligible)
    plan = Plan.uniform(program, STEPS, "full", window=Window(min(3, shortest - 1)))
    allowed = METHODS if program.cfg else ("wa-rs", "ast", "full")
    for step in range(1, STEPS):
        for number, site in enumerate(plan.sites):
            shift = number + step if number < 2 else draw.randrange(len(allowed))
            plan = plan.replace(step, site, allowed[shift % len(allowed)])
    return plan


class Reference:
    """The denoiser under a plan, in eager torch and fp64: its attentions are intercepted.

    Two calls are computed as a batch of both, the other half with the conditioning recorded.
    """

    def __init__(self, recording: Recording, program: Program, plan: Plan) -> None:
        self.recording, self.forward = recording, recording.module.forward
        self.cfg = "cond-first" if program.cfg == "separate" else program.cfg
        self.model = Intercepted(
            recording.module,
            [(site.name, site.tokens, site.context_tokens) for site in program.sites],
            [{site: str(method) for site, method in row.items()} for row in plan.cells],
            {site: (window.radius, window.block) for site, window in plan.windows.items()},
            {site.name: site.text for site in program.sites},
            self.cfg,
        )
        self.step, self.left = 0, []

    def __call__(self, *args: object, return_dict: bool = True, **kwargs: object) -> object:
        names = ("hidden_states", "timestep")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if self.left:
            return (self.left.pop(),)
        if self.recording.unconditional is not None:
            other = {**self.recording.unconditional, **{name: given[name] for name in names}}
            given = {name: joined(value, other[name]) for name, value in given.items()}
        (out,) = self.model.run(self.step, given)
        self.step += 1
        if self.recording.unconditional is not None:
            out, other_half = out.chunk(2)
            self.left.append(other_half.float())
        if not return_dict:
            return (out.float(),)
        made = self.forward(*args, **kwargs)
        return pytree.tree_map(lambda _: out.float(), made)

    @contextmanager
    def installed(self) -> Iterator[None]:
        self.recording.module.forward = self
        try:
            yield
        finally:
            del self.recording.module.forward


def joined(value: object, other: object) -> object:
    return torch.cat([value, other]) if isinstance(value, torch.Tensor) else value


def bundled(place: Path, program: Program, plan: Plan) -> Bundle:
    return Bundle.open(compile_bundle(schedule(program, plan), place, jobs=1), threads=1)


def attached(pipe: DiffusionPipeline, bundle: Bundle, call: dict[str, object]) -> torch.Tensor:
    module = pipe.transformer
    attach(pipe, bundle)
    try:
        return images(pipe, call)
    finally:
        detach(pipe)
        assert pipe.transformer is module


@pytest.mark.parametrize("name", PIPELINES)
def test_images_with_a_bundle_attached(name: str, tmp_path: Path) -> None:
    made = PIPELINES[name]
    pipe, call = made.make(), dict(made.call)
    recording = record(pipe, num_inference_steps=STEPS, **call)
    assert recording.cfg == made.cfg
    program = recording.capture()
    before = images(pipe, call)
    assert before.std() > 1e-2

    full = bundled(tmp_path / "full", program, Plan.uniform(program, STEPS, "full"))
    torch.testing.assert_close(attached(pipe, full, call), before, rtol=0, atol=CLOSE)

    plan = mixed(program, 1)
    with Reference(recording, program, plan).installed():
        expected = images(pipe, call)
    assert (expected - before).abs().max() > 5 * CLOSE
    found = attached(pipe, bundled(tmp_path / "mixed", program, plan), call)
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)
    torch.testing.assert_close(images(pipe, call), before, rtol=0, atol=0)


def test_qwen_image_makes_two_calls_and_scales_what_they_make() -> None:
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer("QwenImageTransformer2DModel"),
    )
    masks = {f"{sign}prompt_embeds_mask": torch.ones(1, 6).long() for sign in ("", "negative_")}
    call = {**embeds(6, 12), **masks, "height": 64, "width": 64, "output_type": "latent"}
    recording = record(quiet(pipe), num_inference_steps=STEPS, true_cfg_scale=4.0, **call)
    assert recording.cfg == "separate"
    assert recording.told.scale == 0.001
    assert recording.obstacles == ("the pipeline scales what guidance makes of the halves",)
    assert recording.capture().grid == (4, 4)
    alone = record(pipe, num_inference_steps=STEPS, true_cfg_scale=1.0, **call)
    assert (alone.cfg, alone.obstacles) == (None, ())


def test_flux_calls_twice_under_true_guidance() -> None:
    call = {**PIPELINES["FLUX"].call, "negative_prompt_embeds": noise(1, 6, 12, seed=2)}
    call = {**call, "negative_pooled_prompt_embeds": noise(1, 10, seed=3)}
    recording = record(flux(), num_inference_steps=STEPS, true_cfg_scale=2.0, **call)
    assert (recording.cfg, recording.obstacles) == ("separate", ())
    assert recording.told.scale == 0.001
    assert recording.unconditional["pooled_projections"].equal(noise(1, 10, seed=3))


def test_the_second_denoiser_of_wan() -> None:
    first = PIPELINES["Wan"].make()
    second = transformer("WanTransformer3DModel")
    pipe = quiet(WanPipeline(**first.components | {"transformer_2": second}, boundary_ratio=0.7))
    call = PIPELINES["Wan"].call
    recording = record(pipe, denoiser="transformer_2", num_inference_steps=STEPS, **call)
    assert recording.module is second
    assert recording.cfg == "separate"
    begun = recording.first_step
    boundary = 0.7 * pipe.scheduler.config.num_train_timesteps
    timesteps = recording.scheduler.timesteps
    assert timesteps[begun - 1] >= boundary > timesteps[begun]
    assert recording.kwargs["timestep"].item() == timesteps[begun].item()
    assert recording.scheduler.step_index is None
    assert record(pipe, num_inference_steps=STEPS, **call).first_step == 0
