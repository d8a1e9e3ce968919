"""CLIP score: how well images show what their prompts say.

Computed with transformers: torchmetrics 1.9 doesn't understand what its fifth version returns.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ditc.runtime.errors import first_line

from .images import to_bytes
from .quality import Figure

__all__ = ["clip_score"]

BATCH = 32


def clip_score(
    images: npt.NDArray[np.float32], prompts: Sequence[str] | None, model: str
) -> Figure:
    """Return 100 times the mean cosine of images and their prompts, at least 0.

    Source: Hessel et al. 2021, with torchmetrics' weight of 100.

    Args:
        images: `[samples, channels, height, width]` in [-1, 1].
        prompts: one of each image; None where there are none.
        model: folder of a CLIP model, or a hub id that is in the cache; the paper's is ViT-L/14.
    """
    if prompts is None:
        return Figure(None, "there are no prompts to hold images against")
    from huggingface_hub import snapshot_download
    from transformers import CLIPModel, CLIPProcessor

    try:
        kept = model if Path(model).is_dir() else snapshot_download(model, local_files_only=True)
        clip = CLIPModel.from_pretrained(kept, local_files_only=True, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(kept, local_files_only=True)
    except (OSError, ValueError) as error:  # what transformers and the hub raise of missing files
        why = first_line(error)
        return Figure(None, f"{model} is not at hand, and nothing is downloaded: {why}")
    pixels = to_bytes(images)
    cosines: list[float] = []
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        given = processor(
            text=list(prompts[part]),
            images=list(pixels[part]),
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            found = clip(**given)
        cosines += (found.image_embeds * found.text_embeds).sum(-1).tolist()
    return Figure(max(0.0, 100 * sum(cosines) / len(cosines)))
