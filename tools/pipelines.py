"""Open diffusers pipelines, the denoiser without its weights where that is enough."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline, ModelMixin

from ditc.export import Checkpoint, empty_model

__all__ = ["open_pipeline"]

DENOISER = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_pipeline(model: str, *, loaded: bool) -> tuple[DiffusionPipeline, Checkpoint | None]:
    """Return a pipeline, and where its denoiser's weights lie if they aren't loaded.

    Args:
        model: folder of a pipeline, or the id of one on the hub.
        loaded: whether the denoiser is needed with its weights.

    Raises:
        OSError: if there is none of that name.
        ValueError: if it isn't one of diffusers.
        ImportError: if a library that it needs is missing.
        CaptureError: if the denoiser's weights aren't those of its configuration.
    """
    with _quiet():
        if loaded:
            return DiffusionPipeline.from_pretrained(model), None
        folder = Path(model if Path(model).is_dir() else DiffusionPipeline.download(model))
        kind, checkpoint = _denoiser_class(folder), _checkpoint(folder / DENOISER)
        if kind is None or checkpoint is None:
            return DiffusionPipeline.from_pretrained(folder), None
        config = kind.load_config(folder / DENOISER)
        empty = empty_model(lambda: kind.from_config(config), checkpoint)
        return DiffusionPipeline.from_pretrained(folder, **{DENOISER: empty}), checkpoint


def _denoiser_class(folder: Path) -> type[ModelMixin] | None:
    """Return the class of a pipeline's denoiser, None if it isn't one of diffusers' models."""
    index = folder / DiffusionPipeline.config_name
    if not index.is_file():
        return None
    entry = json.loads(index.read_text(encoding="utf-8")).get(DENOISER)
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers":
        return None
    found = getattr(diffusers, str(entry[1]), None)
    return found if isinstance(found, type) and issubclass(found, ModelMixin) else None


def _checkpoint(folder: Path) -> Checkpoint | None:
    """Return a model's weights, None if they aren't safetensors under their usual name."""
    for name in (f"{WEIGHTS}.index.json", WEIGHTS):
        if (folder / name).is_file():
            return Checkpoint(folder / name)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what diffusers and transformers say while they load off standard error."""
    from diffusers.utils import logging as diffusers_says
    from transformers.utils import logging as transformers_say

    before = [(says, says.get_verbosity()) for says in (diffusers_says, transformers_say)]
    bars = [says.is_progress_bar_enabled() for says, _ in before]
    try:
        for says, _ in before:
            says.set_verbosity_error()
            says.disable_progress_bar()
        yield
    finally:
        for (says, verbosity), bar in zip(before, bars, strict=True):
            says.set_verbosity(verbosity)
            if bar:
                says.enable_progress_bar()
