"""Another checkpoint in a bundle: the same bytes as compiling that model, graphs untouched."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditc.export import compile as compile_bundle
from ditc.export.variants import swap_weights
from ditc.passes import Origin, Plan, Window, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import BundleError
from ditc.tools.cli import main

from . import models
from .compiled import arrays, planned, workshop
from .samples import sample
from .test_export_bundle import tree


def saved(path: Path, alter: Callable[[dict[str, torch.Tensor]], object] = lambda _: None) -> Path:
    """Save another model's weights, altered."""
    tensors = {name: value.clone() for name, value in models.dit(seed=7).state_dict().items()}
    tensors.pop("pos_embed.pos_embed", None)
    alter(tensors)
    save_file(tensors, path)
    return path


def compiled(seed: int, place: Path) -> Path:
    model = sample("dit", "cond-first")
    program = capture(models.dit(seed=seed), model.kwargs(0), "cond-first")
    plan: Plan = planned(program, "full", "wa-rs+asc", "ast", window=Window(3))
    return compile_bundle(schedule(program, plan), place)


@pytest.fixture(scope="module")
def bundle() -> Path:
    return compiled(0, workshop() / "variants")


def test_swapped_is_compiled(bundle: Path, tmp_path: Path) -> None:
    swapped = swap_weights(bundle, saved(tmp_path / "other.safetensors"), tmp_path / "swapped")
    expected = compiled(7, tmp_path / "expected")
    for path in expected.iterdir():
        if path.name != "manifest.json":
            assert (swapped / path.name).read_bytes() == path.read_bytes(), path.name
    assert (swapped / "b00.onnx").read_bytes() == (bundle / "b00.onnx").read_bytes()
    assert (swapped / "weights.safetensors").read_bytes() != (
        bundle / "weights.safetensors"
    ).read_bytes()
    program = sample("dit", "cond-first").program
    inputs = arrays(program, sample("dit", "cond-first").kwargs(0))
    found, wanted = (Bundle.open(place, threads=1) for place in (swapped, expected))
    assert (found.step(0, **inputs) == wanted.step(0, **inputs)).all()
    assert found.manifest.weights_sha256 is not None
    assert wanted.manifest.weights_sha256 is None


def test_the_plan_says_that_it_is_of_other_weights(bundle: Path, tmp_path: Path) -> None:
    record = json.loads((bundle / "plan.json").read_text())
    assert record["found"] is None
    program = sample("small", "cond-first").program
    from dataclasses import replace

    plan = replace(
        planned(program, "full", "ast"), origin=Origin("greedy", 0.1, "loss", 0, 4, "0.1.0")
    )
    place = compile_bundle(schedule(program, plan), tmp_path / "bundle")
    path = tmp_path / "same.safetensors"
    save_file(sample("small", "cond-first").module.state_dict(), path)
    for _ in range(2):
        swap_weights(place, path, place)
        origin = Plan.load(place / "plan.json").origin
        assert origin is not None
        assert origin.search == "greedy, on other weights"


def test_the_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "other.safetensors")
    place = tmp_path / "swapped"
    assert main(["weights", str(bundle), "--from", str(path), "-o", str(place)]) == 0
    assert capsys.readouterr().out == f"{place}: weights of {path}, graphs as they were\n"
    assert main(["inspect", str(place)]) == 0
    assert "weights    swapped for those of " in capsys.readouterr().out
    assert set(load_file(place / "weights.safetensors")) == set(
        load_file(bundle / "weights.safetensors")
    )


def test_a_folder_of_one_file_or_of_shards(bundle: Path, tmp_path: Path) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    file = saved(whole / "diffusion_pytorch_model.safetensors")
    names = sorted(tensors := load_file(file))
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, shards / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = swap_weights(bundle, file, tmp_path / "expected")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert Bundle.open(expected, threads=1).manifest.weights_sha256 == digest
    command = ["weights", str(bundle), "--from"]
    assert main([*command, str(whole), "-o", str(tmp_path / "one")]) == 0
    assert tree(tmp_path / "one") == tree(expected)
    assert main([*command, str(shards), "-o", str(tmp_path / "several")]) == 0
    for path in expected.iterdir():
        if path.name != "manifest.json":
            assert (tmp_path / "several" / path.name).read_bytes() == path.read_bytes()
    lines = [
        f"{hashlib.sha256((shards / part).read_bytes()).hexdigest()}  {part}\n" for part in parts
    ]
    told = Bundle.open(tmp_path / "several", threads=1).manifest.weights_sha256
    assert told == hashlib.sha256("".join(lines).encode()).hexdigest()


def refusal(bundle: Path, checkpoint: Path, place: Path) -> str:
    before = tree(place.parent)
    with pytest.raises(BundleError) as caught:
        swap_weights(bundle, checkpoint, place)
    assert tree(place.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAME = "transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    ("alter", "told"),
    [
        (lambda t: t.pop(NAME), f"lacks {NAME}, which the bundle's model has"),
        (lambda t: t.update({"lora_A": torch.ones(2)}), "holds lora_A, which the bundle's model"),
        (lambda t: t.update({NAME: t[NAME].half()}), f"{NAME} is float16 [24, 24], the bundle's"),
        (lambda t: t.update({NAME: t[NAME][:3].clone()}), f"{NAME} is float32 [3, 24], the bund"),
    ],
)
def test_checkpoints_that_do_not_fit(
    bundle: Path, tmp_path: Path, alter: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    path = saved(tmp_path / "other.safetensors", alter)
    assert told in refusal(bundle, path, tmp_path / "place")


def test_what_is_no_checkpoint_or_no_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("weights")
    assert "can't be read as safetensors" in refusal(bundle, tmp_path / "text", tmp_path / "place")
    (tmp_path / "empty").mkdir()
    assert "expected one safetensors file" in refusal(bundle, tmp_path / "empty", tmp_path / "new")
    assert "is neither a safetensors file nor a folder with any" in refusal(
        bundle, tmp_path / "none", tmp_path / "place"
    )
    assert "is no folder" in refusal(tmp_path / "none", tmp_path / "text", tmp_path / "place")
