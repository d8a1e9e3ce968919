"""Open-Sora's pipeline: recorded, compiled, and equal to itself."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, Window, record, schedule
from ditc.passes.recording import Recording
from ditc.runtime import Bundle
from ditc.runtime.diffusers import attach, detach
from ditc.runtime.errors import EngineError
from ditc.tools.cli import main
from ditc.tools.models import load_recording
from ditc.tools.open_sora import STDiT2, STDiT3
from ditc.tools.open_sora_pipeline import OpenSoraPipeline
from ditc.tools.zoo_reference import Intercepted

from .models import noise, randomised
from .test_open_sora import CHANNELS, SMALL, WORDS, small

STEPS, SCALE = 3, 3.0
SIZES = {"height": 56, "width": 72}
ROWS = (("wa-rs", "asc"), ("wa-rs+asc", "ast"))
"""Methods of the two sites, from step 1 on by turns."""
KINDS = [STDiT2, STDiT3]


def pipeline(kind: type[nn.Module], depth: int = 1) -> OpenSoraPipeline:
    module = small(kind, depth=depth)
    with torch.no_grad():  # outputs of about one, as a trained model's
        module.final_layer.linear.weight.mul_(0.3)
    return OpenSoraPipeline(module)


def call(kind: type[nn.Module]) -> dict[str, object]:
    mask = torch.ones(1, WORDS)
    mask[0, 4:] = 0
    return {
        "prompt_embeds": noise(1, WORDS, CHANNELS, seed=3),
        "prompt_attention_mask": mask,
        "num_frames": 3 if kind is STDiT2 else 8,
        **SIZES,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
    }


def recorded(kind: type[nn.Module], pipe: OpenSoraPipeline) -> Recording:
    if kind is STDiT3:  # so few frames have no transform of their timesteps
        pipe.scheduler.register_to_config(use_timestep_transform=False)
    return record(pipe, **call(kind))


def latents(program: Program) -> torch.Tensor:
    return noise(1, *program.latents.shape[1:], seed=4)


def draws(program: Program) -> np.ndarray:
    """Return the noise that the pipeline draws, which the last step does without."""
    generator = torch.Generator().manual_seed(5)
    shape = (1, *program.latents.shape[1:])
    drawn = [torch.randn(shape, generator=generator) for _ in range(STEPS - 1)]
    return torch.stack([*drawn, torch.zeros(shape)]).numpy()


def sampled(pipe: OpenSoraPipeline, kind: type[nn.Module], program: Program) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    return pipe(**call(kind), latents=latents(program), generator=generator).latents.numpy()


class Stepwise(nn.Module):
    """The denoiser of a pipeline, with the methods of a plan in the place of its attentions."""

    def __init__(self, module: nn.Module, program: Program, plan: Plan) -> None:
        super().__init__()
        self.y_embedder, self.config = module.y_embedder, module.config
        sites = [(site.name, site.tokens, site.context_tokens) for site in program.sites]
        cells = [{site: str(row[site]) for site in plan.sites} for row in plan.cells]
        windows = {site: (w.radius, w.block) for site, w in plan.windows.items()}
        self.run = Intercepted(module, sites, cells, windows, {}, program.cfg).run
        self.step = 0

    def forward(self, **kwargs: object) -> list[torch.Tensor]:
        self.step += 1
        return [out.float() for out in self.run(self.step - 1, kwargs)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_of_the_pipeline(kind: type[nn.Module]) -> None:
    pipe = pipeline(kind)
    recording = recorded(kind, pipe)
    assert recording.cfg == "cond-first"
    assert recording.obstacles == ()
    assert recording.scheduler.num_inference_steps == STEPS
    frames = 3 if kind is STDiT2 else 2
    assert recording.kwargs["hidden_states"].shape == (2, 4, frames, 7, 9)
    words = recording.kwargs["encoder_hidden_states"]
    assert torch.equal(words[1], pipe.transformer.y_embedder.y_embedding)
    assert torch.equal(words[0], call(kind)["prompt_embeds"][0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])
def test_a_bundle_samples_as_the_pipeline(
    kind: type[nn.Module], mixed: bool, tmp_path: Path
) -> None:
    pipe = pipeline(kind, depth=2 if mixed else 1)
    recording = recorded(kind, pipe)
    program = recording.capture()
    plan = Plan.uniform(program, STEPS, "full", window=Window(3))
    if mixed:
        for step in range(1, STEPS):
            for index, site in enumerate(plan.sites):
                plan = plan.replace(step, site, ROWS[(step - 1) % 2][index])
        pipe.transformer = Stepwise(pipe.transformer, program, plan)
    sched = schedule(program, plan)
    bundle = Bundle.open(
        compile_bundle(sched, tmp_path / "bundle", sampler=recording.scheduler, jobs=1), threads=1
    )
    found = bundle.generate(
        guidance_scale=SCALE, latents=latents(program).numpy(), noise=draws(program)
    )
    expected = sampled(pipe, kind, program)
    pipe.transformer = recording.module
    attach(pipe, bundle)
    attached = sampled(pipe, kind, program)
    detach(pipe)
    assert pipe.transformer is recording.module
    effect = np.abs(sampled(pipe, kind, program) - expected).max()
    limit = 1e-3 * np.abs(expected).max()
    assert (effect > 0) == mixed
    for ours in (found, attached):
        assert np.abs(ours - expected).max() <= (min(limit, effect / 10) if mixed else limit)


def test_without_guidance_there_is_one_half() -> None:
    pipe = pipeline(STDiT2)
    arguments = {**call(STDiT2), "guidance_scale": 1.0, "prompt_embeds": None}
    recording = record(pipe, **arguments)
    assert recording.cfg is None
    assert recording.kwargs["hidden_states"].shape[0] == 1


def autoencoder(seed: int = 0) -> nn.Module:
    made = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )
    return randomised(made, seed)


def test_frames_are_decoded_one_by_one() -> None:
    vae = autoencoder()
    pipe = OpenSoraPipeline(small(STDiT2), vae=vae)
    video = pipe(**call(STDiT2), generator=torch.Generator().manual_seed(0))
    assert video.frames is not None
    assert (video.frames.shape, video.frames.dtype) == ((1, 3, 56, 72, 3), np.uint8)
    with torch.no_grad():
        still = vae.decode(video.latents[:, :, 1] / vae.config.scaling_factor).sample
    expected = ((still[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()
    assert np.abs(video.frames[0, 1] - expected).max() <= 0.5 + 1e-3


def test_videos_with_a_bundle_attached(tmp_path: Path) -> None:
    pipe = pipeline(STDiT2)
    pipe.vae = autoencoder()
    program = recorded(STDiT2, pipe).capture()
    sched = schedule(program, Plan.uniform(program, STEPS, "full"))
    bundle = Bundle.open(compile_bundle(sched, tmp_path / "bundle", jobs=1), threads=1)
    before = pipe(**call(STDiT2), generator=torch.Generator().manual_seed(0)).frames
    attach(pipe, bundle)
    after = pipe(**call(STDiT2), generator=torch.Generator().manual_seed(0)).frames
    assert before.std() > 5
    assert np.abs(after.astype(int) - before).max() <= 1
    with pytest.raises(EngineError, match="another resolution or length"):
        pipe(**{**call(STDiT2), "num_frames": 4})
    with pytest.raises(EngineError, match="has 2 steps, the bundle's plan 3"):
        pipe(**{**call(STDiT2), "num_inference_steps": 2})
    with pytest.raises(EngineError, match="guidance is off"):
        pipe(**{**call(STDiT2), "guidance_scale": 1.0})


def test_captions_need_a_text_encoder() -> None:
    pipe = pipeline(STDiT2)
    with pytest.raises(ValueError, match="there is no text encoder: give prompt_embeds"):
        pipe("a river")
    words = (noise(1, WORDS, CHANNELS, seed=6), torch.ones(1, WORDS))
    asked: list[object] = []
    pipe.text_encoder = lambda captions: (asked.append(captions), words)[1]
    arguments: Mapping[str, object] = {**call(STDiT2), "prompt_embeds": None}
    recording = record(pipe, prompt="a river", **arguments)
    assert asked == [["a river"]]
    assert torch.equal(recording.kwargs["encoder_hidden_states"][:1], words[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_embeds": torch.zeros(1, 3, CHANNELS)}, r"\[1, 3, 12\], expected \[6, 12\] a cap"),
        ({"latents": torch.zeros(1, 4, 3, 7, 8)}, r"expected \(1, 4, 3, 7, 9\)"),
        ({"height": 7}, "the video is 3 x 7 x 72, which has no latents"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(STDiT2)(**{**call(STDiT2), **change})


def test_the_command_takes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the published layout to a GIF, its frames those of the pipeline."""
    module = pipeline(STDiT2).transformer
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "STDiT2", "input_sq_size": SMALL["input_sq_size"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    autoencoder(seed=2).save_pretrained(tmp_path / "vae")
    words = call(STDiT2)["prompt_embeds"]
    np.save(tmp_path / "words.npy", words.numpy())
    arguments = {**SIZES, "num_frames": 3, "prompt_embeds": str(tmp_path / "words.npy")}
    recording = load_recording(str(tmp_path), 2, arguments, None)
    Plan.uniform(recording.capture(), 2, "full").save(tmp_path / "plan.json")
    place = str(tmp_path / "bundle")
    compiling = ["compile", str(tmp_path), "--plan", str(tmp_path / "plan.json"), "-o", place]
    assert main([*compiling, "--call", json.dumps(arguments)]) == 0
    running = ["run", place, "--guidance-scale", "3", "--seed", "1", "--threads", "1", "-o"]
    assert main([*running, str(tmp_path / "out.npy")]) == 0
    assert main([*running, str(tmp_path / "out.gif")]) == 0
    latents = torch.from_numpy(np.load(tmp_path / "out.npy"))
    frames = OpenSoraPipeline(module, vae=autoencoder(seed=2))._frames(latents)
    bundle = Bundle.open(place, threads=1)
    assert np.abs(bundle.decode(latents.numpy()).astype(int) - frames).max() <= 1
    with Image.open(tmp_path / "out.gif") as video:
        assert (video.n_frames, video.size) == (3, (72, 56))
    missing = {**arguments, "prompt_embeds": "none.npy"}
    assert main([*compiling, "--call", json.dumps(missing)]) == 1
    assert (
        "--call prompt_embeds: none.npy: is no array that can be read: " in capsys.readouterr().err
    )
    assert main([*compiling, "--call", json.dumps({**arguments, "height": 3})]) == 1
    assert "Open-Sora's pipeline refuses its arguments" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main([*compiling]) == 1
    assert "expected a pipeline's folder or Open-Sora's checkpoint" in capsys.readouterr().err
