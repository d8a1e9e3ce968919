import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file

from ditc.tools import glyphs
from ditc.tools.glyphs import CLASSES, DEMO_MODEL, FONTS, NULL_CLASS, render_batch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classes_are_digits_and_capitals() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == NULL_CLASS == 36


def test_every_font_draws_every_class_apart_from_the_others() -> None:
    masters = glyphs._masters().float() / 255
    assert masters.shape == (len(FONTS), 36, 128, 128)
    ink = masters.mean(dim=(-2, -1))
    assert ink.min() > 0.02
    assert ink.max() < 0.35
    small = torch.nn.functional.avg_pool2d(masters, 4).flatten(2)
    apart = torch.cdist(small, small) / small.norm(dim=-1).mean()
    apart += torch.eye(36) * 9
    # The closest pair, 1 and I of STIXGeneral, is a quarter of a typical glyph's norm apart.
    assert apart.min() > 0.2


def test_no_glyph_reaches_the_border_before_jitter() -> None:
    masters = glyphs._masters()
    margin = 4
    assert masters[..., :margin, :].max() == 0
    assert masters[..., -margin:, :].max() == 0
    assert masters[..., :margin].max() == 0
    assert masters[..., -margin:].max() == 0


def test_same_seed_same_images() -> None:
    labels = torch.arange(36)
    first, second = render_batch(labels, generator(1)), render_batch(labels, generator(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, render_batch(labels, generator(2)))


def test_images_span_minus_one_to_one() -> None:
    images = render_batch(torch.arange(36).repeat(5), generator())
    assert images.shape == (180, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == pytest.approx(1, abs=1e-6)
    # Anti-aliased edges: strokes are about two pixels wide, so about half of the ink is an edge.
    inked = images > -0.99
    assert 0.2 < ((images < 0.99) & inked).sum() / inked.sum() < 0.8


def test_null_class_has_no_glyph() -> None:
    with pytest.raises(ValueError, match=r"0\.\.35"):
        render_batch(torch.tensor([NULL_CLASS]), generator())


def test_classifier_learns_from_nothing_in_few_steps() -> None:
    classifier = glyphs.train_classifier(steps=30, batch=64)
    labels = torch.arange(36).repeat(10)
    images = render_batch(labels, generator(5))
    # Chance is 1/36.
    assert glyphs.share_read(classifier, images, labels) > 0.3


def test_shipped_classifier_reads_fresh_jitter() -> None:
    labels = torch.arange(36).repeat(50)
    images = render_batch(labels, generator(20_260_101))
    assert glyphs.share_read(glyphs.load_classifier(), images, labels) >= 0.99


def test_shipped_classifier_rejects_what_is_no_glyph() -> None:
    labels = torch.arange(36).repeat(10)
    noise = torch.randn(360, 1, 32, 32, generator=generator())
    # Pure noise is read as a given class no more often than chance, give or take.
    assert glyphs.share_read(glyphs.load_classifier(), noise, labels) < 0.1


def test_shipped_folder_is_small_and_complete() -> None:
    names = {path.name for path in DEMO_MODEL.iterdir()}
    weights = "diffusion_pytorch_model.safetensors"
    assert names >= {"README.md", "config.json", weights, "classifier.safetensors", "samples.png"}
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) <= 8_000_000
    assert (DEMO_MODEL / "classifier.safetensors").stat().st_size < 300_000
    assert (DEMO_MODEL / "samples.png").stat().st_size < 200_000
    assert json.loads((DEMO_MODEL / "config.json").read_text())["sample_size"] == 32


def test_shipped_model_loads_as_float32_both_ways() -> None:
    model = glyphs.load_demo_model()
    assert not model.training
    stored = load_file(DEMO_MODEL / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    by_diffusers = DiTTransformer2DModel.from_pretrained(DEMO_MODEL).state_dict()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, stored[name].float())
        assert torch.equal(weight, by_diffusers[name])


def test_shipped_model_draws_what_is_asked() -> None:
    labels = torch.arange(36)
    images = glyphs.sample_glyphs(glyphs.load_demo_model(), labels, generator(), steps=6)
    assert images.shape == (36, 1, 32, 32)
    # One sample a class: 0.9 leaves room for three misreadings.
    assert glyphs.share_read(glyphs.load_classifier(), images, labels) >= 0.9


def test_scheduler_feeds_a_thousand_times_the_noise_level() -> None:
    scheduler = glyphs.demo_scheduler()
    scheduler.set_timesteps(20)
    assert len(scheduler.timesteps) == 20
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
    assert scheduler.sigmas[0] == 1
    assert scheduler.sigmas[-1] == 0
