"""Open-Sora's denoisers: published names and shapes, numbers, sites, loading."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ditc.passes import capture
from ditc.runtime.errors import DitcError
from ditc.tools.open_sora import STDiT2, STDiT3
from ditc.tools.open_sora_loading import is_open_sora, load_open_sora

from .models import noise, randomised
from .open_sora_reference import Reference, first_version, second_version

WORDS, CHANNELS = 6, 12
SMALL = {
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": CHANNELS,
    "model_max_length": WORDS,
    "input_sq_size": 40,
}
Shapes = dict[str, tuple[int, ...]]


def small(kind: type[nn.Module], **config: object) -> nn.Module:
    module = randomised(kind(**{**SMALL, **config}), std=0.15)
    with torch.no_grad():
        module.y_embedder.y_embedding.copy_(noise(WORDS, CHANNELS, seed=8))
        module.rope.freqs.copy_(10000.0 ** -(torch.arange(0, 24, 2) / 24))
    return module


def kwargs_of(kind: type[nn.Module], seed: int = 0, batch: int = 2) -> dict[str, object]:
    mask = torch.ones(batch, WORDS, dtype=torch.int64)
    mask[0, 4:] = 0
    numbers = {"height": 56.0, "width": 72.0, "fps": 24.0}
    if kind is STDiT2:
        numbers |= {"num_frames": 3.0, "ar": 56 / 72}
    return {
        "hidden_states": noise(batch, 4, 3, 7, 9, seed=seed),
        "timestep": torch.full((batch,), 900.5 - 40 * seed),
        "encoder_hidden_states": noise(batch, WORDS, CHANNELS, seed=99),
        "encoder_attention_mask": mask,
        **{name: torch.full((batch,), number) for name, number in numbers.items()},
    }


# Names and shapes, as the published code defines them.


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def embedder(name: str, width: int) -> Shapes:
    return {**linear(f"{name}.mlp.0", width, 256), **linear(f"{name}.mlp.2", width, width)}


def attention(name: str, width: int, head_dim: int) -> Shapes:
    norms = {f"{name}.{which}_norm.weight": (head_dim,) for which in "qk"}
    return {
        **linear(f"{name}.qkv", 3 * width, width),
        **norms,
        **linear(f"{name}.proj", width, width),
    }


def block(name: str, width: int, head_dim: int) -> Shapes:
    return {
        **attention(f"{name}.attn", width, head_dim),
        **linear(f"{name}.cross_attn.q_linear", width, width),
        **linear(f"{name}.cross_attn.kv_linear", 2 * width, width),
        **linear(f"{name}.cross_attn.proj", width, width),
        **linear(f"{name}.mlp.fc1", 4 * width, width),
        **linear(f"{name}.mlp.fc2", width, 4 * width),
        f"{name}.scale_shift_table": (6, width),
    }


def around(width: int, words: int, head_dim: int) -> Shapes:
    return {
        "rope.freqs": (head_dim // 2,),
        "x_embedder.proj.weight": (width, 4, 1, 2, 2),
        "x_embedder.proj.bias": (width,),
        **embedder("t_embedder", width),
        **embedder("fps_embedder", width),
        **linear("t_block.1", 6 * width, width),
        "y_embedder.y_embedding": (words, 4096),
        **linear("y_embedder.y_proj.fc1", width, 4096),
        **linear("y_embedder.y_proj.fc2", width, width),
        **linear("final_layer.linear", 32, width),
        "final_layer.scale_shift_table": (2, width),
    }


def published_1_1() -> Shapes:
    shapes = {
        **around(1152, 200, 72),
        **linear("t_block_temp.1", 3 * 1152, 1152),
        **embedder("csize_embedder", 384),
        **embedder("ar_embedder", 384),
        **embedder("fl_embedder", 1152),
    }
    for i in range(28):
        shapes |= block(f"blocks.{i}", 1152, 72)
        shapes |= attention(f"blocks.{i}.attn_temp", 1152, 72)
        shapes[f"blocks.{i}.scale_shift_table_temporal"] = (3, 1152)
    return shapes


def published_1_2() -> Shapes:
    shapes = around(1152, 300, 72)
    for i in range(28):
        shapes |= block(f"spatial_blocks.{i}", 1152, 72)
        shapes |= block(f"temporal_blocks.{i}", 1152, 72)
    return shapes


@pytest.mark.parametrize(("kind", "shapes"), [(STDiT2, published_1_1()), (STDiT3, published_1_2())])
def test_names_and_shapes_are_the_published_ones(kind: type[nn.Module], shapes: Shapes) -> None:
    with torch.device("meta"):
        state = kind().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes


def test_the_size_is_the_published_one() -> None:
    """768,271,300 numbers are what the hub tells of `OpenSora-STDiT-v2-stage3`."""
    with torch.device("meta"):
        assert sum(value.numel() for value in STDiT2().state_dict().values()) == 768_271_300


# Numbers.


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (STDiT2, {}),
        (STDiT2, {"qk_norm": False}),
        (STDiT2, {"qk_norm_legacy": False}),
        (STDiT3, {}),
        (STDiT3, {"patch_size": (2, 2, 2), "pred_sigma": False}),
    ],
)
def test_numbers(kind: type[nn.Module], config: dict[str, object]) -> None:
    module, kwargs = small(kind, **config), kwargs_of(kind)
    with torch.no_grad():
        found = module(**kwargs).sample
    assert module(**kwargs, return_dict=False)[0].shape == found.shape
    patch = config.get("patch_size", (1, 2, 2))
    reference = Reference(module.state_dict(), 2, patch, SMALL["input_sq_size"])
    for i in range(2):
        words = kwargs["encoder_hidden_states"][i][kwargs["encoder_attention_mask"][i].bool()]
        names = ("timestep", "height", "width", "fps", "num_frames", "ar")
        sample = {name: float(kwargs[name][i]) for name in names if name in kwargs}
        sample |= {"video": kwargs["hidden_states"][i], "words": words}
        if kind is STDiT2:
            legacy = config.get("qk_norm_legacy", True)
            expected = first_version(reference, 2, legacy, sample)
        else:
            expected = second_version(reference, 2, sample)
        # Angles of 56 · 72 pixels and timestep 900 lose 1e-4 in float32.
        assert (found[i] - expected).abs().max() <= 2e-4 * expected.abs().max()


# Sites.


@pytest.mark.parametrize("kind", [STDiT2, STDiT3])
def test_attention_within_frames_is_eligible_and_no_other(kind: type[nn.Module]) -> None:
    module, kwargs = small(kind), kwargs_of(kind)
    program = capture(module, kwargs, cfg="cond-first")
    with torch.no_grad():
        assert torch.equal(program(**kwargs).sample, module(**kwargs).sample)
    spatial = ["blocks.0.attn", "blocks.1.attn"]
    temporal = ["blocks.0.attn_temp", "blocks.1.attn_temp"]
    if kind is STDiT3:
        spatial = [f"spatial_blocks.{i}.attn" for i in range(2)]
        temporal = [f"temporal_blocks.{i}.attn" for i in range(2)]
    assert [site.name for site in program.sites if site.eligible] == spatial
    for name in temporal:
        site = program.site(name)
        assert (site.kind, site.tokens) == ("self", 3)
        assert site.reason == "its tokens are frames: attention over time is left alone"
    assert all(program.site(name).tokens == 4 * 5 for name in spatial)
    every = capture(module, kwargs, cfg="cond-first", temporal=True)
    assert {site.name for site in every.sites if site.eligible} == {*spatial, *temporal}


# Loading.


@pytest.mark.parametrize("kind", [STDiT2, STDiT3])
def test_a_published_layout_is_loaded(kind: type[nn.Module], tmp_path: Path) -> None:
    module = small(kind, patch_size=(1, 2, 2))
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    names = sorted(state)
    save_file({name: state[name] for name in names[:9]}, tmp_path / "model-00001.safetensors")
    save_file({name: state[name] for name in names[9:]}, tmp_path / "model-00002.safetensors")
    config = {"model_type": kind.__name__, "input_sq_size": 40, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_open_sora(tmp_path)
    loaded = load_open_sora(tmp_path)
    assert type(loaded) is kind
    assert dict(loaded.config).items() >= {**SMALL, "mlp_ratio": 4.0, "qk_norm": True}.items()
    kwargs = kwargs_of(kind)
    with torch.no_grad():
        assert torch.equal(loaded(**kwargs).sample, module(**kwargs).sample)
    save_file(state, tmp_path / "alone.safetensors")
    half = load_open_sora(tmp_path / "alone.safetensors", torch.float16)
    assert {value.dtype for value in half.state_dict().values()} == {torch.float16}


def test_pickles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps({}))
    for place in (file, tmp_path):
        with pytest.raises(DitcError, match=r"model\.pth: is a pickle.*save_file\(torch\.load"):
            load_open_sora(place)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DitcError, match=r"holds no \.safetensors file"):
        load_open_sora(tmp_path)
    assert not is_open_sora(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(DitcError, match="can't be read as safetensors"):
        load_open_sora(file)
    save_file({"w": torch.ones(2)}, file)
    with pytest.raises(DitcError, match="is no checkpoint of Open-Sora"):
        load_open_sora(file)
    state = {name: value.contiguous() for name, value in small(STDiT3).state_dict().items()}
    for name, change, message in (
        ("t_block.1.bias", None, "lacks t_block.1.bias"),
        ("t_block.1.bias", torch.ones(3), r"t_block.1.bias has shape \[3\], expected \[288\]"),
        ("extra", torch.ones(3), "holds extra, which"),
    ):
        changed = {**state, name: change}
        save_file({name: value for name, value in changed.items() if value is not None}, file)
        with pytest.raises(DitcError, match=message):
            load_open_sora(file)
