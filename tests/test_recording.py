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


def test_two_calls_a_step_are_refused() -> None:
    pipe = Pipeline(guided(4.0), calls=2)
    with pytest.raises(CaptureError, match="more than once a step"):
        record(pipe)
    assert "forward" not in vars(pipe.transformer)


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
    """Tells its denoiser a timestep of its own, and its scheduler something more."""

    def __init__(self, told: float, **more: object) -> None:
        super().__init__(guided(4.0))
        self.transformer, self.scheduler = models.small(), Stepping()
        self.told, self.more = told, more

    def __call__(self) -> None:
        x = models.noise(4, 25, 16)
        out = self.transformer(x=x, t=torch.full((4,), self.told))
        self.scheduler.step(self.mix(out), torch.tensor(750), x, **self.more)


class Stepping:
    def step(self, model_output, timestep, sample, eta=0.0, generator=None) -> None: ...


def test_a_denoiser_told_the_schedulers_timestep() -> None:
    assert record(Telling(750.0, eta=0.0, generator=object())).cfg == "cond-first"


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (Telling(0.75), "tells its denoiser the timestep 0.75 where its scheduler has 750"),
        (Telling(750.0, eta=1.0), r"Stepping.step with eta=1.0, .* expected 0.0"),
    ],
)
def test_what_a_bundle_could_not_repeat(pipe: Telling, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        record(pipe)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_guidance_of_another_sign_is_refused(scale: float) -> None:
    with pytest.raises(CaptureError, match="such as turning its sign"):
        record(Pipeline(lambda out: -guided(scale)(out)))
