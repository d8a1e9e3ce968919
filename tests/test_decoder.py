"""Bundles with a decoder: pixels against the autoencoder's own, files, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import nn

from ditc.export import capture_decoder
from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.decoder import DecoderInfo
from ditc.runtime.errors import BundleError, EngineError, LoweringError
from ditc.runtime.manifest import Manifest
from ditc.tools.cli import main
from ditc.tools.open_sora import STDiT3

from . import models
from .commands import Capture, fails
from .compiled import workshop
from .test_open_sora import kwargs_of, small

STEPS = 2


def vae(channels: int, seed: int = 0, **config: object) -> nn.Module:
    """Return an autoencoder of a fourfold side, its weights such that pixels differ."""
    made = AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=2,
        **config,
    )
    return models.randomised(made, seed, std=0.25)


def expected(module: nn.Module, latents: np.ndarray) -> np.ndarray:
    """Decode as diffusers' pipelines do, to `[samples, height, width, 3]`."""
    config = module.config
    scaled = torch.from_numpy(latents) / config.scaling_factor + (config.shift_factor or 0.0)
    with torch.no_grad():
        decoded = module.decode(scaled, return_dict=False)[0]
    pictures = VaeImageProcessor().postprocess(decoded, output_type="pil")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def off(found: np.ndarray, right: np.ndarray) -> int:
    assert found.shape == right.shape
    assert right.std() > 5  # or the pictures say nothing
    return int(np.abs(found.astype(int) - right.astype(int)).max())


@lru_cache
def program() -> Program:
    return capture(models.dit(layers=1), models.dit_kwargs(batch=4), cfg="cond-first")


def compiled(made: Program, place: Path, decoder: object) -> Bundle:
    sched = schedule(made, Plan.uniform(made, STEPS, "full"))
    sampler = DDIMScheduler(clip_sample=False)
    path = compile_bundle(
        sched, place, sampler=sampler, decoder=decoder, prologue=False, cache=workshop() / "cache"
    )
    return Bundle.open(path, threads=1)


@lru_cache
def bundle() -> Bundle:
    return compiled(program(), workshop() / "decoder", vae(3, shift_factor=0.2))


def place() -> Path:
    bundle()
    return workshop() / "decoder"


@lru_cache
def video_bundle() -> Bundle:
    """Return a bundle of two frames, which an autoencoder of pictures decodes one by one."""
    kwargs = kwargs_of(STDiT3)
    kwargs["hidden_states"] = models.noise(2, 4, 2, 6, 8)
    made = capture(small(STDiT3, depth=1, pred_sigma=False), kwargs, cfg="cond-first")
    return compiled(made, workshop() / "video", vae(4))


def test_pixels_are_the_autoencoders() -> None:
    latents = bundle().generate(seed=1, guidance_scale=1.5)
    found = bundle().decode(latents)
    assert (found.dtype, found.shape) == (np.uint8, (2, 40, 40, 3))
    assert off(found, expected(vae(3, shift_factor=0.2), latents)) <= 1


def test_any_number_of_samples_is_decoded() -> None:
    latents = np.random.default_rng(0).standard_normal((3, 3, 10, 10)).astype(np.float32)
    told: list[tuple[int, int]] = []
    found = bundle().decode(latents, done=lambda number, count: told.append((number, count)))
    assert off(found, expected(vae(3, shift_factor=0.2), latents)) <= 1
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_videos_are_decoded_frame_by_frame() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 3, 6, 8)).astype(np.float32)
    found = video_bundle().decode(latents)
    assert found.shape == (2, 3, 24, 32, 3)
    for sample in range(2):
        right = expected(vae(4), latents[sample].transpose(1, 0, 2, 3))
        assert off(found[sample], right) <= 1


def test_inspect_tells_the_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    info = bundle().manifest.decoder
    assert info is not None
    assert main(["inspect", str(place())]) == 0
    said = f"decoder    {list(info.input.shape)} to {list(info.output.shape)}, "
    assert said in capsys.readouterr().out


def test_the_manifest_tells_the_decoder() -> None:
    manifest = bundle().manifest
    info = manifest.decoder
    assert info is not None
    assert (info.graph, info.frames_axis) == ("decoder.onnx", None)
    assert (info.input.shape, info.output.shape) == ((1, 3, 10, 10), (1, 3, 40, 40))
    assert info.multiply_adds > 0
    assert all(
        name.startswith(("vae.decoder.", "vae.post_quant", "const")) for name in info.weights
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    video = video_bundle().manifest.decoder
    assert video is not None
    assert (video.frames_axis, video.input.shape) == (2, (1, 4, 6, 8))


def test_graphs_share_one_store_and_the_encoder_is_in_none() -> None:
    assert [path.name for path in place().glob("*.safetensors") if "weights" in path.name] == [
        "weights.safetensors"
    ]
    names = {name for graph in bundle().manifest.buckets for name in graph.weights}
    info = bundle().manifest.decoder
    assert info is not None
    assert names.isdisjoint(info.weights)
    assert not any("encoder." in name for name in info.weights)


def test_packed_latents_are_unpacked_where_their_places_are_told() -> None:
    """As FLUX packs them: token (i, j) holds the 2 x 2 latents from (2i, 2j) on."""
    rows, columns, channels = 3, 5, 4
    whole = models.noise(1, channels, 2 * rows, 2 * columns, seed=5)
    tokens = [
        whole[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
        for i in range(rows)
        for j in range(columns)
    ]
    packed = torch.stack(tokens)[None]
    places = torch.zeros(rows, columns, 3)
    places[..., 1] += torch.arange(rows)[:, None]
    places[..., 2] += torch.arange(columns)

    class Packed(nn.Module):
        def forward(self, hidden_states: torch.Tensor, img_ids: torch.Tensor) -> torch.Tensor:
            return hidden_states + img_ids.sum()

    made = capture(Packed(), {"hidden_states": packed, "img_ids": places.flatten(0, 1)})
    decoder = capture_decoder(vae(channels), made)
    found = decoder(latents=packed).round().byte()[0].permute(1, 2, 0).numpy()
    assert off(found[None], expected(vae(channels), whole.numpy())) <= 1
    short = capture(Packed(), {"hidden_states": packed, "img_ids": places.flatten(0, 1)[:7]})
    with pytest.raises(
        LoweringError, match=r"\[1, 15, 16\] are packed, and no input img_ids tells"
    ):
        capture_decoder(vae(channels), short)


class Half(nn.Module):
    """An autoencoder whose picture is one more axis than a picture has."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"scaling_factor": 1.0}

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (latents[:, :, None],)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "decoder is a Linear, expected an autoencoder with decode"),
        (vae(3).half(), "AutoencoderKL: .* is float16, expected float32: load the autoencoder in"),
        (vae(5), r"AutoencoderKL can't decode latents \[1, 3, 10, 10\] of the denoiser's \[4, 3,"),
        (Half(), r"Half decodes latents to \[1, 3, 1, 10, 10\], expected a picture"),
        (
            vae(3, latents_mean=[0.0] * 3, latents_std=[1.0] * 3),
            "AutoencoderKL normalises latents channel by channel",
        ),
    ],
)
def test_what_is_no_decoder_of_these_latents_is_refused(
    module: nn.Module, message: str, tmp_path: Path
) -> None:
    sched = schedule(program(), Plan.uniform(program(), STEPS, "full"))
    with pytest.raises(LoweringError, match=message):
        compile_bundle(sched, tmp_path / "bundle", decoder=module)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (
            np.zeros((1, 4, 10, 10), np.float32),
            r"\(1, 4, 10, 10\), expected \(samples, 3, 10, 10\)",
        ),
        (np.zeros((3, 10, 10), np.float32), r"expected \(samples, 3, 10, 10\) to decode"),
        (np.full((1, 3, 10, 10), np.nan, np.float32), "values that are NaN or infinite"),
        (np.zeros((1, 3, 10, 10), np.int64), "has dtype int64, expected float32"),
    ],
)
def test_latents_that_do_not_fit_are_refused(latents: np.ndarray, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        bundle().decode(latents)


def test_a_bundle_without_a_decoder_says_so(tmp_path: Path) -> None:
    plain = compiled(program(), tmp_path / "bundle", None)
    assert plain.manifest.decoder is None
    with pytest.raises(BundleError, match="the bundle has no decoder: compile with decoder="):
        plain.decode(np.zeros((1, 3, 10, 10), np.float32))


def changed(**fields: object) -> str:
    info = bundle().manifest.decoder
    assert info is not None
    return json.dumps({**info.to_json(), **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graph": "../decoder.onnx"}, "decoder.graph: the path"),
        ({"frames_axis": 0}, "decoder.frames_axis: is 0, expected 1 to 4"),
        ({"weights": ["a", "a"]}, "decoder.weights: names 'a' twice"),
        ({"multiply_adds": -1}, "decoder.multiply_adds: is -1"),
        ({"other": 1}, "decoder: unknown field 'other'"),
    ],
)
def test_malformed_decoders_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        DecoderInfo.from_json(json.loads(changed(**fields)), "decoder")


def test_a_decoder_that_does_not_belong_is_refused() -> None:
    manifest = bundle().manifest
    info = manifest.decoder
    assert info is not None
    shape = replace(info.input, shape=(1, 3, 10, 12))
    with pytest.raises(BundleError, match=r"decoder: takes \[1, 3, 10, 12\], which are no latents"):
        replace(manifest, decoder=replace(info, input=shape))
    with pytest.raises(BundleError, match=r"decoder: its graph 'gone\.onnx' isn't in files"):
        replace(manifest, decoder=replace(info, graph="gone.onnx"))
    for output, message in (
        (replace(info.output, shape=(1, 4, 40, 40)), "has 4 channels, expected 1 or 3"),
        (replace(info.output, shape=(3, 40, 40)), "expected latents of one sample to one picture"),
    ):
        wrong = replace(info, output=output).to_json()
        with pytest.raises(BundleError, match=message):
            DecoderInfo.from_json(wrong, "decoder")


# The command.

RUN = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers"), None))
from ditc.tools.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_run_ends_in_a_picture_without_torch(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    arguments = ["run", place(), "-o", out, "--seed", "4", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: [2, 40, 40, 3], seed 4\n"
    pixels = bundle().decode(bundle().generate(seed=4))
    with Image.open(out) as picture:
        shown = np.asarray(picture)
    assert shown.shape == (40, 80, 3)
    np.testing.assert_array_equal(shown[:, :40], pixels[0])
    np.testing.assert_array_equal(shown[:, 40:], pixels[1])
    right = expected(vae(3, shift_factor=0.2), bundle().generate(seed=4))
    assert off(pixels, right) <= 1


def test_run_writes_latents_and_videos(tmp_path: Path, capsys: Capture) -> None:
    from ditc.tools.cli import main

    video_bundle()
    for name, shape in (("a.npy", [1, 4, 2, 6, 8]), ("a.gif", [1, 2, 24, 32, 3])):
        arguments = ["run", str(workshop() / "video"), "-o", str(tmp_path / name), "--fps", "10"]
        assert main([*arguments, "--threads", "1"]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: {shape}, seed 0\n"
    with Image.open(tmp_path / "a.gif") as video:
        assert (video.n_frames, video.size, video.info["duration"]) == (2, (32, 24), 100)


def test_run_refuses_what_a_bundle_does_not_make(tmp_path: Path, capsys: Capture) -> None:
    video_bundle()
    told = fails(capsys, "run", place(), "-o", tmp_path / "a.gif")
    assert told.endswith("a.gif: the bundle makes pictures: write them as .png, or .npy")
    told = fails(capsys, "run", workshop() / "video", "-o", tmp_path / "a.png")
    assert told.endswith("a.png: the bundle makes videos: write them as .gif or .mp4, or .npy")
    assert list(tmp_path.iterdir()) == []
