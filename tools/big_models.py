"""Full-size models with made-up weights, for measuring what compiling them takes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from ditc.export import Checkpoint, empty_model
from ditc.export.weights import Entry, write_store
from ditc.passes import Recording

__all__ = ["flux_kwargs", "flux_recording", "make_flux_weights"]

SHARD_BYTES = 5 * 10**9
BLOCK = 2**22
"""Numbers drawn once; weights repeat them, which no step of a build looks at."""
TEXT_TOKENS = 512


def make_flux() -> torch.nn.Module:
    """Return FLUX.1-dev's transformer as its configuration says: 12 B parameters."""
    made: torch.nn.Module = FluxTransformer2DModel(guidance_embeds=True)
    return made


def make_flux_weights(folder: Path, make: Callable[[], torch.nn.Module] = make_flux) -> int:
    """Write made-up bfloat16 weights of a model as shards with an index; return their bytes."""
    with torch.device("meta"):
        model = make()
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Entry]] = [{}]
    generator = torch.Generator().manual_seed(0)
    drawn = (0.02 * torch.randn(BLOCK, generator=generator)).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        entry = _entry(tuple(parameter.shape), drawn)
        if sum(part.nbytes for part in shards[-1].values()) + entry.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = entry
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_store(shard, folder / file)
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = json.dumps({"metadata": {}, "weight_map": places}, indent=1)
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return sum(entry.nbytes for shard in shards for entry in shard.values())


def _entry(shape: tuple[int, ...], drawn: torch.Tensor) -> Entry:
    def made() -> torch.Tensor:
        count = torch.Size(shape).numel()
        return drawn.repeat(-(-count // len(drawn)))[:count].reshape(shape)

    return Entry(shape, drawn.dtype, made)


def flux_recording(
    folder: Path, side: int = 64, make: Callable[[], torch.nn.Module] = make_flux
) -> Recording:
    """Return a call of FLUX.1-dev's transformer, none of whose weights is loaded.

    Args:
        folder: where its weights lie.
        side: patches along each edge; 64 for images of 1024 pixels, 128 for 2048.
        make: makes the model.
    """
    checkpoint = Checkpoint(folder)
    module = empty_model(make, checkpoint)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return Recording(module, flux_kwargs(module, side), None, scheduler, weights=checkpoint)


def flux_kwargs(module: torch.nn.Module, side: int) -> dict[str, object]:
    """Return arguments of one call, random ones."""
    config: Mapping[str, int] = module.config  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack([torch.zeros(side, side), rows, columns], dim=-1).reshape(-1, 3)
    return {
        "hidden_states": torch.randn(1, side**2, config["in_channels"], generator=generator),
        "encoder_hidden_states": torch.randn(
            1, TEXT_TOKENS, config["joint_attention_dim"], generator=generator
        ),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
        "img_ids": ids,
        "return_dict": False,
    }
