"""A folder with Open-Sora's checkpoint as a MODEL of the command: record its pipeline's call."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ditc.passes import Recording, record
from ditc.runtime.errors import DitcError

from .arrays import read_array
from .calling import calling
from .open_sora_loading import load_open_sora
from .open_sora_pipeline import OpenSoraPipeline

__all__ = ["open_sora_recording"]

ARRAYS = ("prompt_embeds", "prompt_attention_mask", "latents")


def open_sora_recording(folder: Path, steps: int, call: Mapping[str, object]) -> Recording:
    """Record a call of Open-Sora's pipeline.

    Args:
        folder: the checkpoint; a folder `vae` in it, if there, is the autoencoder of 1.1.
        steps: model evaluations.
        call: further arguments of the pipeline, with names of .npy files for tensors.

    Raises:
        DitcError: if the checkpoint or an argument is at fault.
    """
    vae = None
    if (folder / "vae").is_dir():
        vae = AutoencoderKL.from_pretrained(folder / "vae")
    pipe = OpenSoraPipeline(load_open_sora(folder), vae=vae)
    given = {name: _value(name, value) for name, value in call.items()}
    with calling(folder, "Open-Sora's pipeline"):
        return record(pipe, call={"num_inference_steps": steps, **given})


def _value(name: str, value: object) -> object:
    if name not in ARRAYS:
        return value
    try:
        return torch.from_numpy(read_array(Path(str(value)), f"--call {name}: {value}"))
    except TypeError as error:  # torch has not all of numpy's dtypes
        raise DitcError(f"--call {name}: expected numbers: {error}") from error
