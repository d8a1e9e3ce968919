"""CLIP score with a small CLIP of random weights, against cosines of its own embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ditc.tools.clip_score import clip_score

SIZE = 32
PROMPTS = ("a cat", "the letter b", "a cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer either side, whose words are letters."""
    place = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"))
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**small, **ends, "vocab_size": len(words)},
            vision_config={**small, "image_size": SIZE, "patch_size": 8},
            projection_dim=8,
        )
    )
    model.save_pretrained(place)
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    CLIPProcessor(pictures, tokenizer).save_pretrained(place)
    return place


def test_the_score_by_its_formula(folder: Path) -> None:
    """Preprocessing and embeddings written out: bytes, the processor's mean and deviation."""
    images = np.random.default_rng(0).uniform(-1, 1, (3, 3, SIZE, SIZE)).astype(np.float32)
    clip, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPProcessor.from_pretrained(folder),
    )
    pixels = ((images + 1) * 127.5).round() / 255
    mean, deviation = (
        np.array(values).reshape(3, 1, 1)
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    cosines = []
    for image, prompt in zip((pixels - mean) / deviation, PROMPTS, strict=True):
        tokens = processor.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            seen = clip.vision_model(torch.from_numpy(image[None]).float()).pooler_output
            read = clip.text_model(**tokens).pooler_output
            first = clip.visual_projection(seen)[0].double().numpy()
            second = clip.text_projection(read)[0].double().numpy()
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    found = clip_score(images, PROMPTS, str(folder))
    assert found.absent is None
    assert found.value == pytest.approx(max(0, 100 * np.mean(cosines)), abs=1e-3)
    assert abs(np.mean(cosines)) > 0.01


def test_absent_without_prompts(folder: Path) -> None:
    images = np.zeros((1, 1, SIZE, SIZE), np.float32)
    assert clip_score(images, None, str(folder)).absent == (
        "there are no prompts to hold images against"
    )


def test_absent_where_the_model_is_not(tmp_path: Path) -> None:
    images = np.zeros((1, 1, SIZE, SIZE), np.float32)
    for model in (str(tmp_path), "openai/clip-vit-large-patch14"):
        found = clip_score(images, ["a"], model)
        assert found.value is None
        assert str(found.absent).startswith(f"{model} is not at hand, and nothing is downloaded: ")
