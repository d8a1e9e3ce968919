"""Load Open-Sora's published checkpoints: safetensors in, a denoiser out."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ditc.runtime.errors import DitcError

from .open_sora import STDiT2, STDiT3

__all__ = ["is_open_sora", "load_open_sora"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
STATED = ("input_sq_size", "qk_norm_legacy")
"""What a checkpoint's shapes don't tell, and its config may."""
Tensors = Mapping[str, torch.Tensor]


def is_open_sora(path: Path) -> bool:
    """Whether a folder holds a published checkpoint, by its config."""
    return str(_config(path).get("model_type", "")).startswith("STDiT")


def load_open_sora(path: str | Path, dtype: torch.dtype = torch.float32) -> STDiT2 | STDiT3:
    """Load a denoiser of Open-Sora 1.1 or 1.2.

    Sizes are read off the tensors; a `config.json` beside them may state `input_sq_size` and
    `qk_norm_legacy`, which they don't tell.

    Args:
        path: a folder of safetensors files, such as a copy of `hpcai-tech/OpenSora-STDiT-v3`, or
            one such file.
        dtype: of the weights.

    Raises:
        DitcError: if it holds pickles or isn't Open-Sora's, naming the tensor at fault.
    """
    place = Path(path)
    tensors = _read(place)
    kind, sizes = _sizes(place, tensors)
    config = _config(place if place.is_dir() else place.parent)
    stated = {name: config[name] for name in STATED if name in config}
    if kind is STDiT3:
        stated.pop("qk_norm_legacy", None)
    with torch.device("meta"):
        model: STDiT2 | STDiT3 = kind(**sizes, **stated)
    _check(place, model.state_dict(), tensors)
    model.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
    model.eval()
    return model


def _read(place: Path) -> dict[str, torch.Tensor]:
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    pickled = [*place.iterdir()] if place.is_dir() and not files else [place]
    for file in pickled:
        if file.suffix in PICKLES:
            raise DitcError(
                f"{file}: is a pickle, which may run any code when it is loaded; convert it to "
                "safetensors: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
                "'model.safetensors')"
            )
    if not files:
        raise DitcError(f"{place}: holds no .safetensors file, expected Open-Sora's checkpoint")
    try:
        return {name: value for file in files for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise DitcError(f"{place}: can't be read as safetensors: {error}") from error


def _config(folder: Path) -> Mapping[str, object]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(place: Path, tensors: Tensors) -> tuple[type[STDiT2] | type[STDiT3], dict[str, object]]:
    """Return the version and what its tensors say of its sizes."""
    kind, block = STDiT2, "blocks"
    if "spatial_blocks.0.attn.qkv.weight" in tensors:
        kind, block = STDiT3, "spatial_blocks"
    try:
        width, channels, *patch = tensors["x_embedder.proj.weight"].shape
        pairs = tensors["rope.freqs"].shape[0]
        hidden = tensors[f"{block}.0.mlp.fc1.weight"].shape[0]
        words, caption_channels = tensors["y_embedder.y_embedding"].shape
        values = tensors["final_layer.linear.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise DitcError(f"{place}: is no checkpoint of Open-Sora 1.1 or 1.2: {error}") from error
    numbers = [name.split(".")[1] for name in tensors if name.startswith(f"{block}.")]
    sizes: dict[str, object] = {
        "in_channels": channels,
        "patch_size": tuple(patch),
        "hidden_size": width,
        "depth": 1 + max(int(number) for number in numbers),
        "num_heads": width // (2 * pairs),
        "mlp_ratio": hidden / width,
        "pred_sigma": values == 2 * channels * torch.Size(patch).numel(),
        "caption_channels": caption_channels,
        "model_max_length": words,
        "qk_norm": f"{block}.0.attn.q_norm.weight" in tensors,
    }
    return kind, sizes


def _check(place: Path, expected: Tensors, found: Tensors) -> None:
    for name, value in expected.items():
        if name not in found:
            raise DitcError(f"{place}: lacks {name}, which Open-Sora's denoiser has")
        if found[name].shape != value.shape:
            raise DitcError(
                f"{place}: {name} has shape {list(found[name].shape)}, expected {list(value.shape)}"
            )
    strangers = sorted(set(found) - set(expected))
    if strangers:
        raise DitcError(f"{place}: holds {strangers[0]}, which Open-Sora's denoiser hasn't")
