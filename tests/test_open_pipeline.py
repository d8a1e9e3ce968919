"""Pipelines whose denoiser is recorded and captured without its weights."""

import json
from pathlib import Path

import pytest
import torch

from ditc.passes.fingerprint import program_digest
from ditc.runtime.errors import CaptureError, DitcError
from ditc.tools.cli import main
from ditc.tools.models import load_recording
from ditc.tools.pipelines import open_pipeline

from . import pipelines

CALL = {"class_labels": [3], "guidance_scale": 4.0}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pipe") / "dit"
    pipelines.dit().save_pretrained(place)
    return place


def test_recorded_without_weights_as_with_them(folder: Path) -> None:
    unseen = load_recording(str(folder), 4, CALL, None, loaded=False)
    seen = load_recording(str(folder), 4, CALL, None)
    assert all(parameter.is_meta for parameter in unseen.module.parameters())
    assert not any(parameter.is_meta for parameter in seen.module.parameters())
    assert (unseen.cfg, unseen.told) == (seen.cfg, seen.told)
    assert torch.equal(unseen.kwargs["class_labels"], seen.kwargs["class_labels"])
    program, loaded = unseen.capture(), seen.capture()
    assert program_digest(program) == program_digest(loaded)
    assert program.weights is not None
    for name, parameter in seen.module.named_parameters():
        assert torch.equal(program.weights.tensor(name), parameter)


def test_weights_of_another_name_are_loaded(folder: Path, tmp_path: Path) -> None:
    pipe = pipelines.dit()
    pipe.save_pretrained(tmp_path / "pipe", safe_serialization=False)
    opened, checkpoint = open_pipeline(str(tmp_path / "pipe"), loaded=False)
    assert checkpoint is None
    assert not any(parameter.is_meta for parameter in opened.transformer.parameters())


def test_a_configuration_of_another_model(folder: Path, tmp_path: Path) -> None:
    pipelines.dit().save_pretrained(tmp_path / "pipe")
    config = tmp_path / "pipe" / "transformer" / "config.json"
    changed = {**json.loads(config.read_text()), "num_layers": 9}
    config.write_text(json.dumps(changed))
    with pytest.raises(CaptureError, match="lacks transformer_blocks"):
        load_recording(str(tmp_path / "pipe"), 4, CALL, None, loaded=False)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(DitcError, match="is neither 'demo', a pipeline folder"):
        load_recording(str(tmp_path), 4, CALL, None, loaded=False)


def test_a_hub_that_can_not_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the download: what stands in its way is told in one line."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["search", "facebook/DiT-XL-2-512", "--steps", "20", "--call", json.dumps(CALL)]
    assert main([*arguments, "-o", str(tmp_path / "plan.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "ditc: model facebook/DiT-XL-2-512: is neither 'demo', a pipeline folder"
    )
    assert "stacktrace" not in line
    assert list(tmp_path.iterdir()) == []
