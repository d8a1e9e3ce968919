"""Glyphs: the demo model's data, its shipped weights, and the reader that judges its images.

Digits and capital letters, drawn from the text fonts that come with matplotlib and jittered by
small affine maps. The rest of the package treats the demo as it would any other denoiser.
"""

import functools
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from PIL.ImageFont import FreeTypeFont

__all__ = [
    "CLASSES",
    "CLASSIFIER",
    "DEMO_MODEL",
    "FONTS",
    "IMAGE_SIZE",
    "NULL_CLASS",
    "GlyphClassifier",
    "GlyphFeatures",
    "demo_scheduler",
    "load_classifier",
    "load_demo_model",
    "render_batch",
    "sample_glyphs",
    "share_read",
    "train_classifier",
]

CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NULL_CLASS = len(CLASSES)
IMAGE_SIZE = 32
DEMO_MODEL = Path(__file__).parent / "demo_model"
CLASSIFIER = "classifier.safetensors"

# Left out: cmmi10 (old-style digits: 0 is a small o, 1 a small I), cmtt10 and DejaVuSansMono (0 and
# O are nearly the same oval), cmsy10 and cmex10 (symbols), and fonts that lack these characters.
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmti10",
)

_OVERSAMPLE = 4
_MASTER_SIZE = IMAGE_SIZE * _OVERSAMPLE
_HEIGHT = 20 * _OVERSAMPLE  # of the letter H, in master pixels
_MAX_WIDTH = 25 * _OVERSAMPLE  # wider letters (W, M) are condensed to this

_ROTATION = 0.14  # radians, either way
_SHEAR = 0.12
_LOG_SCALE = 0.10  # both axes together
_LOG_ASPECT = 0.04  # small: width is what tells 0 from O
_SHIFT = 2.0  # pixels of the 32 x 32 image


def render_batch(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one glyph for each label, in a random font under a random small affine map.

    Args:
        labels: `[batch]` int64 on the CPU, indices into `CLASSES`.
        generator: a CPU generator; the same state and labels give the same images.

    Returns:
        `[batch, 1, 32, 32]` float32 on the CPU, -1 for background and 1 for ink.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise ValueError(f"labels must lie in 0..{len(CLASSES) - 1}, the null class has no glyph")
    masters = _masters()
    font = torch.randint(len(masters), labels.shape, generator=generator)
    grid = functional.affine_grid(
        _jitter(len(labels), generator),
        [len(labels), 1, _MASTER_SIZE, _MASTER_SIZE],
        align_corners=False,
    )
    glyphs = masters[font, labels].unsqueeze(1).float() / 255
    drawn = functional.grid_sample(glyphs, grid, align_corners=False)
    # Averaging blocks of a finer image is what keeps the edges clean.
    return functional.avg_pool2d(drawn, _OVERSAMPLE) * 2 - 1


def _jitter(batch: int, generator: torch.Generator) -> Tensor:
    """Random maps from output to input coordinates, `[batch, 2, 3]`, in units of half the image."""
    rotation, shear, scale, aspect, shift_x, shift_y = (
        torch.rand(6, batch, generator=generator) * 2 - 1
    )
    angle = rotation * _ROTATION
    cos, sin = angle.cos(), angle.sin()
    zoom = torch.exp(scale * _LOG_SCALE)
    stretch = torch.exp(aspect * _LOG_ASPECT)
    slant = shear * _SHEAR
    to_half = 2 * _SHIFT / IMAGE_SIZE
    row_x = [cos * zoom * stretch, (slant * cos - sin) * zoom * stretch, shift_x * to_half]
    row_y = [sin * zoom / stretch, (slant * sin + cos) * zoom / stretch, shift_y * to_half]
    return torch.stack([torch.stack(row_x, -1), torch.stack(row_y, -1)], dim=1)


@functools.cache
def _masters() -> Tensor:
    """Every font x class at four times the size, `[fonts, 36, 128, 128]` uint8, 255 for ink."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [[_draw(folder / f"{name}.ttf", glyph) for glyph in CLASSES] for name in FONTS]
    return torch.stack([torch.stack(glyphs) for glyphs in fonts])


def _draw(font_path: Path, character: str) -> Tensor:
    """One glyph, its bounding box in the middle of a `[128, 128]` uint8 image."""
    import numpy as np
    from PIL import Image, ImageDraw

    font = _sized_font(font_path)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), character, font=font, fill=255)
    if glyph.width > _MAX_WIDTH:
        glyph = glyph.resize((_MAX_WIDTH, glyph.height), Image.Resampling.LANCZOS)
    master = Image.new("L", (_MASTER_SIZE, _MASTER_SIZE))
    master.paste(glyph, ((_MASTER_SIZE - glyph.width) // 2, (_MASTER_SIZE - glyph.height) // 2))
    return torch.from_numpy(np.array(master))


@functools.cache
def _sized_font(font_path: Path) -> "FreeTypeFont":
    """The font at the size that makes its H as tall as `_HEIGHT`."""
    from PIL import ImageFont

    probe = 400
    _, top, _, bottom = ImageFont.truetype(str(font_path), probe).getbbox("H")
    return ImageFont.truetype(str(font_path), round(probe * _HEIGHT / (bottom - top)))


class GlyphClassifier(nn.Module):
    """Reads a glyph: four small convolutions and one linear layer, 36 classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for width_in, width in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(width_in, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1] * 2 * 2, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, 1, 32, 32]` images in [-1, 1] to `[batch, 36]` logits."""
        return cast("Tensor", self.head(self.features(images).flatten(1)))


class GlyphFeatures(nn.Module):
    """What the classifier sees of glyphs before it decides: its penultimate features."""

    num_features = 256

    def __init__(self, classifier: GlyphClassifier) -> None:
        super().__init__()
        self.features = classifier.features

    @classmethod
    def load(cls) -> "GlyphFeatures":
        """Return those of the shipped classifier, in eval mode."""
        return cls(load_classifier()).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map `[batch, 1, 32, 32]` images in [-1, 1] to `[batch, 256]` features."""
        return cast("Tensor", self.features(images).flatten(1))


def train_classifier(steps: int = 600, batch: int = 256, seed: int = 0) -> GlyphClassifier:
    """Train the reader of glyphs on lightly noised glyphs, about two minutes on a CPU."""
    torch.manual_seed(seed)
    classifier = GlyphClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="classifier", mininterval=10):
        labels = torch.randint(len(CLASSES), (batch,), generator=generator)
        images = render_batch(labels, generator)
        strength = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator)
        noisy = images + strength * torch.randn(images.shape, generator=generator)
        loss = functional.cross_entropy(classifier(noisy), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return classifier.eval()


def load_classifier(folder: Path = DEMO_MODEL) -> GlyphClassifier:
    """The trained reader of glyphs, float32, in eval mode."""
    classifier = GlyphClassifier()
    classifier.load_state_dict(load_file(folder / CLASSIFIER))
    return classifier.eval()


def load_demo_model(folder: Path = DEMO_MODEL) -> "DiTTransformer2DModel":
    """The trained denoiser, float32, in eval mode.

    Inputs are images `[batch, 1, 32, 32]`, timesteps `[batch]` in 0..1000 and class labels
    `[batch]` in 0..36, where 36 is the null class; the output is the flow's velocity.
    """
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_config(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    model.load_state_dict(weights)
    return cast("DiTTransformer2DModel", model.float().eval())


def demo_scheduler() -> "FlowMatchEulerDiscreteScheduler":
    """The scheduler the model card's figures are measured with."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


@torch.no_grad()
def sample_glyphs(
    model: "DiTTransformer2DModel",
    labels: Tensor,
    generator: torch.Generator,
    steps: int = 20,
    guidance_scale: float = 4.0,
) -> Tensor:
    """Generate one glyph for each label with classifier-free guidance.

    Each step runs the conditional half of the batch, then the unconditional half, as DiT's
    pipeline does.

    Args:
        model: the denoiser, on the device of the labels.
        labels: `[batch]` int64, indices into `CLASSES`.
        generator: a CPU generator, which the starting noise comes from.
        steps: how often the model is run.
        guidance_scale: 1 for none.

    Returns:
        `[batch, 1, 32, 32]` float32, about -1 for background and 1 for ink.
    """
    scheduler = demo_scheduler()
    scheduler.set_timesteps(steps, device=labels.device)
    shape = (len(labels), 1, IMAGE_SIZE, IMAGE_SIZE)
    images = torch.randn(shape, generator=generator).to(labels.device)
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    for timestep in scheduler.timesteps:
        velocity = model(
            torch.cat([images, images]), timestep=timestep.expand(len(both)), class_labels=both
        ).sample
        conditional, unconditional = velocity.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        images = scheduler.step(guided, timestep, images).prev_sample
    return images


@torch.no_grad()
def share_read(classifier: GlyphClassifier, images: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier reads as the class asked for, 0 to 1."""
    return float((classifier(images).argmax(-1) == labels).double().mean())
