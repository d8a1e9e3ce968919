"""Ship and measure the demo model: `python -m ditc.tools.export_demo --work-dir DIR`."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .glyphs import (
    CLASSES,
    CLASSIFIER,
    DEMO_MODEL,
    IMAGE_SIZE,
    load_classifier,
    load_demo_model,
    sample_glyphs,
    share_read,
)
from .train_demo import CHECKPOINT, Options, build_model

__all__ = ["export", "main", "measure"]

_MEASURED = ((20, 4.0), (20, 2.0), (20, 1.0), (10, 4.0))  # steps and guidance scale


def export(work_dir: Path, folder: Path) -> None:
    """Ship the latest checkpoint: averaged weights in float16 and the classifier.

    Safe beside a running training, whose checkpoints are replaced whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = work_dir / CHECKPOINT
    with safe_open(checkpoint, "pt") as file:
        options = json.loads(file.metadata()["progress"])["options"]
    model = build_model(Options(**options))
    averaged = {
        name.removeprefix("ema."): value
        for name, value in load_file(checkpoint).items()
        if name.startswith("ema.")
    }
    model.load_state_dict(averaged)
    model.half().save_pretrained(folder)
    shutil.copyfile(work_dir / CLASSIFIER, folder / CLASSIFIER)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors makes its files private to the user


def measure(
    folder: Path,
    per_class: int,
    settings: Sequence[tuple[int, float]] = _MEASURED,
    seed: int = 0,
) -> dict[str, float]:
    """Sample the shipped model and write a picture of it.

    Returns the share of glyphs read as the class asked for, 0 to 1, of 36 x `per_class` samples
    for each of the settings, which are pairs of steps and guidance scale.
    """
    model, classifier = load_demo_model(folder), load_classifier(folder)
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    shares: dict[str, float] = {}
    for steps, guidance_scale in settings:
        generator = torch.Generator().manual_seed(seed)
        images = sample_glyphs(model, labels, generator, steps, guidance_scale)
        shares[f"{steps} steps, guidance {guidance_scale}"] = share_read(classifier, images, labels)
        if len(shares) == 1:
            _write_sheet(images[: 10 * len(CLASSES)], folder / "samples.png")
    return shares


def _write_sheet(images: Tensor, path: Path) -> None:
    """Write `[rows x 36, 1, 32, 32]` images in [-1, 1] as one grey picture, a class per column."""
    rows = images.clamp(-1, 1).reshape(-1, len(CLASSES), IMAGE_SIZE, IMAGE_SIZE)
    sheet = ((rows + 1) * 127.5).round().byte().permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    Image.fromarray(sheet.numpy()).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export the latest checkpoint, then measure what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.export_demo",
        description="Turn a checkpoint of the demo model into a model folder and measure it.",
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="where it was trained")
    parser.add_argument("--to", type=Path, default=DEMO_MODEL, help="the model folder to write")
    parser.add_argument("--per-class", type=int, default=10, help="samples to measure, 0 for none")
    given = parser.parse_args(arguments)
    export(given.work_dir, given.to)
    if given.per_class:
        print(json.dumps(measure(given.to, given.per_class), indent=2))


if __name__ == "__main__":
    main()
