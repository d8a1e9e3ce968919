"""Recording a pipeline's denoiser call, with real diffusers pipelines of random weights."""

import functools

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
)
from torch import nn

from ditc.passes import Recording, capture, record
from ditc.runtime.errors import CaptureError

from . import models


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        norm_num_groups=1,
        latent_channels=models.CHANNELS,
    )


def dit_pipeline() -> DiTPipeline:
    pipe = DiTPipeline(
        transformer=models.dit(layers=1), vae=autoencoder(), scheduler=DDIMScheduler()
    )
    # The pipeline takes 1000 for the class without a label; the tiny model has it at 10.
    pipe.transformer.transformer_blocks[0].norm1.emb.class_embedder = WrappingLabels(
        pipe.transformer.transformer_blocks[0].norm1.emb.class_embedder
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class WrappingLabels(nn.Module):
    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return self.embedder(labels.clamp(max=10))


def pixart_pipeline() -> PixArtSigmaPipeline:
    pipe = PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder(),
        transformer=models.pixart(layers=1),
        scheduler=DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def record_dit(pipe: DiTPipeline, **call: object) -> Recording:
    return record(pipe, class_labels=[3, 4], num_inference_steps=4, **call)


def record_pixart(pipe: PixArtSigmaPipeline, **call: object) -> Recording:
    embeds = {
        f"{sign}prompt_embeds": models.noise(1, 7, 12, seed=seed)
        for seed, sign in enumerate(("", "negative_"))
    }
    masks = {f"{sign}prompt_attention_mask": torch.ones(1, 7) for sign in ("", "negative_")}
    size = {"height": 4 * models.SIZE, "width": 4 * models.SIZE, "use_resolution_binning": False}
    return record(
        pipe,
        prompt=None,
        negative_prompt=None,
        num_inference_steps=4,
        **embeds,
        **masks,
        **size,
        **call,
    )


def test_dit_has_the_conditional_half_first() -> None:
    recording = record_dit(dit_pipeline())
    assert recording.cfg == "cond-first"
    assert recording.kwargs["hidden_states"].shape == (4, 3, 10, 10)
    assert recording.kwargs["class_labels"].tolist() == [3, 4, 1000, 1000]
    assert recording.kwargs["timestep"].tolist() == [750] * 4
    assert recording.scheduler.timesteps.tolist() == [750, 500, 250, 0]


def test_pixart_has_the_unconditional_half_first() -> None:
    recording = record_pixart(pixart_pipeline())
    assert recording.cfg == "uncond-first"
    expected = torch.cat([models.noise(1, 7, 12, seed=1), models.noise(1, 7, 12, seed=0)])
    assert torch.equal(recording.kwargs["encoder_hidden_states"], expected)


@pytest.mark.parametrize(
    ("pipeline", "call"), [(dit_pipeline, record_dit), (pixart_pipeline, record_pixart)]
)
def test_guidance_off_is_no_layout(pipeline, call) -> None:
    assert call(pipeline(), guidance_scale=1.0).cfg is None


@pytest.mark.parametrize(
    ("pipeline", "call"), [(dit_pipeline, record_dit), (pixart_pipeline, record_pixart)]
)
def test_a_recording_captures_to_the_bit(pipeline, call) -> None:
    recording = call(pipeline())
    program = recording.capture()
    assert program.cfg == recording.cfg
    assert [site.eligible for site in program.sites if site.kind == "self"] == [True]
    with torch.no_grad():
        expected = recording.module(**recording.kwargs)
    assert torch.equal(program(**recording.kwargs)[0], expected[0])


def test_pipeline_is_as_before_and_runs_on() -> None:
    pipe = dit_pipeline()
    record_dit(pipe)
    assert "forward" not in vars(pipe.transformer)
    assert "step" not in vars(pipe.scheduler)
    images = pipe(class_labels=[3], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 40, 40, 3)


def test_a_replaced_forward_is_put_back() -> None:
    pipe = dit_pipeline()
    own = pipe.transformer.forward
    replaced = functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs))
    pipe.transformer.forward = replaced
    assert list(record_dit(pipe).kwargs) == ["hidden_states", "timestep", "class_labels"]
    assert pipe.transformer.forward is replaced


class Scheduler:
    def step(self, model_output: torch.Tensor) -> torch.Tensor:
        return model_output


class Pipeline:
    """A pipeline as small as can be; `mix` is what it does with the halves."""

    def __init__(self, mix, calls: int = 1) -> None:
        self.transformer = Collecting()
        self.scheduler = Scheduler()
        self.mix, self.calls = mix, calls

    def __call__(self, batch: int = 4) -> None:
        x = models.noise(batch, 5)
        for _ in range(self.calls):
            out = self.transformer(x, extra=torch.ones(batch), scale=2)
        self.scheduler.step(self.mix(out))


class Collecting(nn.Module):
    def forward(self, x: torch.Tensor, **others: object) -> torch.Tensor:
        return x * others["scale"] + others["extra"][:, None]


def guided(scale: float):
    def mix(out: torch.Tensor) -> torch.Tensor:
        first, second = out.chunk(2)
        return second + scale * (first - second)

    return mix


def test_collected_keywords_are_arguments_by_name() -> None:
    recording = record(Pipeline(guided(7.5)))
    assert list(recording.kwargs) == ["x", "extra", "scale"]
    assert recording.cfg == "cond-first"
    program = capture(recording.module, recording.kwargs, recording.cfg)
    with torch.no_grad():
        assert torch.equal(program(**recording.kwargs), recording.module(**recording.kwargs))


MIXES = {
    "scale below 1": guided(0.5),
    "scale 1": guided(1.0),
    "no guidance": lambda out: out * 3,
    "no number": lambda out: out / 0 * 0,
}


@pytest.mark.parametrize("mix", MIXES)
def test_refused_when_it_cannot_be_told(mix: str) -> None:
    pipe = Pipeline(MIXES[mix])
    with pytest.raises(CaptureError, match="state the layout with cfg='cond-first'"):
        record(pipe)
    assert record(pipe, cfg="uncond-first").cfg == "uncond-first"


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_unguided_batches_have_no_layout(batch: int) -> None:
    assert record(Pipeline(lambda out: out), batch=batch).cfg is None


class Twice(Pipeline):
    """Makes two calls a step, the conditional one first or last; `mix` takes both outputs."""

    def __init__(self, mix, order: str = "cu", steps: int = 3, more: int = 0) -> None:
        super().__init__(mix)
        self.scheduler = Timed(steps)
        self.order, self.more = order, more

    def __call__(self, batch: int = 2, width: int = 6) -> None:
        x = models.noise(batch, width)
        for time in self.scheduler.timesteps:
            told = time.expand(batch) / 1000
            called = [
                self.transformer(x, extra=torch.full((batch,), kind == "c") * 1.0, t=told, scale=2)
                for kind in self.order + self.order[0] * self.more
            ]
            named = dict(zip(self.order, called, strict=False))
            x = self.scheduler.step(self.mix(named["c"], named["u"]), time, x)


class Timed:
    """A scheduler with timesteps, whose step keeps the latents."""

    def __init__(self, steps: int) -> None:
        self.timesteps = torch.arange(steps, 0, -1) * 1000.0 / steps
        self.stepped = 0

    def step(self, model_output, timestep, sample, s_noise: float = 1.0):
        self.stepped += 1
        return sample


def separately(scale: float):
    return lambda cond, uncond: uncond + scale * (cond - uncond)


def rescaled(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """Qwen-Image's: guidance whose rows have the conditional output's norm."""
    guided = uncond + 3.0 * (cond - uncond)
    return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize(("order", "cfg"), [("cu", "separate"), ("uc", "separate-uncond-first")])
@pytest.mark.parametrize(("scale", "batch"), [(1.5, 1), (2.0, 2), (7.5, 3), (5.0, 2)])
def test_two_calls_a_step(order: str, cfg: str, scale: float, batch: int) -> None:
    pipe = Twice(separately(scale), order)
    recording = record(pipe, batch=batch)
    assert recording.cfg == cfg
    assert recording.kwargs["extra"].tolist() == [1.0] * batch
    assert recording.unconditional["extra"].tolist() == [0.0] * batch
    assert recording.obstacles == ()
    assert recording.sampler() is pipe.scheduler
    assert pipe.scheduler.stepped == 0


@pytest.mark.parametrize(("order", "cfg"), [("cu", "separate"), ("uc", "separate-uncond-first")])
@pytest.mark.parametrize("batch", [1, 2])
def test_guidance_that_scales_is_told_but_not_repeated(order: str, cfg: str, batch: int) -> None:
    recording = record(Twice(rescaled, order), batch=batch)
    assert recording.cfg == cfg
    with pytest.raises(CaptureError, match="scales what guidance makes of the halves: compile"):
        recording.sampler()


def test_two_calls_without_guidance_are_refused_unless_stated() -> None:
    pipe = Twice(lambda cond, uncond: cond * uncond - 7)
    with pytest.raises(CaptureError, match="state the layout with cfg='separate'"):
        record(pipe)
    recording = record(pipe, cfg="separate")
    assert recording.cfg == "separate"
    assert len(recording.obstacles) == 1


@pytest.mark.parametrize(
    ("pipe", "cfg", "message"),
    [
        (Twice(separately(3.0)), "cond-first", "cond-first', but the pipeline calls .* twice"),
        (Pipeline(guided(4.0)), "separate", "separate', but the pipeline calls .* once a step"),
        (Twice(separately(3.0), more=1), None, "calls its denoiser more than twice a step"),
    ],
)
def test_calls_that_no_layout_has(pipe: Pipeline, cfg: str | None, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        record(pipe, cfg=cfg)
    assert "forward" not in vars(pipe.transformer)
    assert "step" not in vars(pipe.scheduler)


class Uneven(Twice):
    def __call__(self) -> None:
        for width in (6, 8):
            out = self.transformer(models.noise(2, width), extra=torch.ones(2), scale=2)
        self.scheduler.step(self.mix(out, out), torch.tensor(1.0), out)


def test_calls_of_two_shapes_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"differ in x, which is float32 \[2, 6\] in the first"):
        record(Uneven(lambda cond, _: cond[:, :1]), cfg="separate")


def test_two_calls_as_one_batch() -> None:
    recording = record(Twice(separately(3.0)))
    both = recording.batched()
    assert both.cfg == "cond-first"
    assert both.unconditional is None
    assert both.kwargs["extra"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert both.kwargs["x"].shape == (4, 6)
    assert both.kwargs["scale"] == 2
    assert both.batched() is both
    with pytest.raises(CaptureError, match="unconditional half first"):
        record(Twice(separately(3.0), "uc")).batched()


def test_two_calls_captured() -> None:
    program = record(Twice(separately(3.0))).capture()
    assert program.cfg == "separate"
    assert program.samples == 2
    assert program.example["extra"].tolist() == [1.0, 1.0]
    assert program.unconditional["extra"].tolist() == [0.0, 0.0]
    assert program.told.of(500.0) == 0.5


class TwoDenoisers(Twice):
    """Another denoiser runs the first two steps."""

    def __init__(self) -> None:
        super().__init__(separately(3.0), steps=5)
        self.first = Collecting()

    def __call__(self) -> None:
        own, later = self.transformer, self.scheduler.timesteps
        self.transformer, self.scheduler.timesteps = self.first, later[:2]
        super().__call__()
        self.transformer, self.scheduler.timesteps = own, later[2:]
        super().__call__()
        self.scheduler.timesteps = later


def test_a_second_denoiser_is_recorded_where_it_begins() -> None:
    pipe = TwoDenoisers()
    recording = record(pipe)
    assert recording.module is pipe.transformer
    assert recording.first_step == 2
    assert recording.kwargs["t"].tolist() == pytest.approx([0.6, 0.6])
    assert recording.scheduler.stepped == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denoiser": "unet"}, "Pipeline has no denoiser named unet: state it with denoiser="),
        ({}, "Pipeline never called its transformer"),
    ],
)
def test_pipelines_without_a_denoiser_call(change: dict[str, str], message: str) -> None:
    pipe = Pipeline(lambda out: out, calls=1)
    pipe.__class__ = type("Pipeline", (Pipeline,), {"__call__": lambda self: None})
    with pytest.raises(CaptureError, match=message):
        record(pipe, **change)


def test_a_pipeline_without_a_scheduler() -> None:
    pipe = Pipeline(guided(4.0))
    del pipe.scheduler
    with pytest.raises(CaptureError, match="Pipeline has no scheduler"):
        record(pipe)


class Telling(Pipeline):
    """Tells its denoiser timesteps of its own, and its scheduler something more."""

    def __init__(self, rule, steps: int = 4, **more: object) -> None:
        super().__init__(guided(4.0))
        self.transformer, self.scheduler = models.small(), Timed(steps)
        self.rule, self.more = rule, more

    def __call__(self) -> None:
        x = models.noise(4, 25, 16)
        for time in self.scheduler.timesteps:
            out = self.transformer(x=x, t=self.rule(time).expand(4))
            self.scheduler.step(self.mix(out), time, x, **self.more)


@pytest.mark.parametrize(
    ("rule", "steps", "expected"),
    [
        (lambda t: t, 1, (1.0, 0.0)),
        (lambda t: t / 1000, 2, (0.001, 0.0)),
        (lambda t: 1 - t / 1000, 3, (-0.001, 1.0)),
    ],
)
def test_timesteps_told_by_a_rule(rule, steps: int, expected: tuple[float, float]) -> None:
    recording = record(Telling(rule, steps, s_noise=1.0))
    assert (recording.told.scale, recording.told.offset) == expected
    assert recording.obstacles == ()
    assert recording.cfg == "cond-first"
    assert recording.capture().told == recording.told


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (Telling(lambda t: t / 1000, 1), "timestep 1 where its scheduler has 1000, by a rule"),
        (Telling(lambda t: 1 - t / 1000, 2), "timestep 0 where its .* told from 2 steps"),
        (Telling(lambda t: t.log(), 5), "timestep 6.90776 where its .* told from 3 steps"),
        (Telling(lambda t: t, s_noise=2.0), r"Timed.step with s_noise=2.0, .* expected 1.0"),
    ],
)
def test_what_a_bundle_could_not_repeat(pipe: Telling, message: str) -> None:
    recording = record(pipe)
    assert recording.cfg == "cond-first"
    with pytest.raises(CaptureError, match=message):
        recording.sampler()


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_guidance_of_another_sign_is_refused(scale: float) -> None:
    with pytest.raises(CaptureError, match="such as turning its sign"):
        record(Pipeline(lambda out: -guided(scale)(out)))
