"""Integers that pick rows of a table: torch refuses those beyond it, and so do bundles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ditc.passes import capture
from ditc.passes.picked_rows import picked_rows
from ditc.runtime import Bundle
from ditc.runtime.decoder import DecoderInfo
from ditc.runtime.decoding import decoder_manifest
from ditc.runtime.entries import FileInfo, InputInfo, OutputInfo
from ditc.runtime.errors import EngineError
from ditc.tools.cli import main

from . import models
from .bundles import SHAPE, make_manifest
from .compiled import arrays, sampling_bundle, tiny_dit
from .samples import sample


class Labelled(nn.Module):
    """Labels that pick rows of two tables, and others that are counted with."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(9, 16), nn.Embedding(5, 16)
        self.table = nn.Parameter(torch.ones(4, 16))
        self.body = models.small()

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        known = self.large(a.unsqueeze(1).to(torch.int64)) + self.small(a[:, None])
        shifted = self.large(b + 1)[:, None] + self.table[c][:, None]
        return self.body(x + known + shifted, t)


def test_labels_of_a_transformer() -> None:
    assert picked_rows(tiny_dit().program) == {"class_labels": 11}
    assert picked_rows(sample("pixart", "cond-first").program) == {}


def test_the_shortest_table_counts_and_only_what_picks() -> None:
    labels = {name: torch.tensor([1, 2, 3, 0]) for name in "abc"}
    program = capture(Labelled().eval(), {**models.plain_kwargs(), **labels})
    assert picked_rows(program) == {"a": 5}


@pytest.mark.parametrize("label", [-1, -11, 11, 10**12])
def test_bundles_refuse_what_torch_does(label: int) -> None:
    bundle = Bundle.open(sampling_bundle(), threads=1)
    assert bundle.manifest.rows == {"class_labels": 11}
    kwargs = models.dit_kwargs(batch=2) | {"timestep": torch.full((2,), 500.0)}
    inputs = arrays(tiny_dit().program, kwargs)
    labels = np.array([label, 10])
    with torch.no_grad(), pytest.raises(IndexError):
        tiny_dit().module(**{**kwargs, "class_labels": torch.from_numpy(labels)})
    message = f"'class_labels' holds {label}, expected 0 to 10"
    with pytest.raises(EngineError, match=message):
        bundle.step(0, **{**inputs, "class_labels": labels})
    with pytest.raises(EngineError, match=message):
        bundle.generate(class_labels=labels[:1])
    for sound in (0, 10):
        assert np.isfinite(bundle.generate(class_labels=np.array([sound]))).all()


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latents.npy"
    given = ["run", str(sampling_bundle()), "-o", str(out), "--input", "class_labels=-1"]
    assert main(given) == 1
    assert "'class_labels' holds -1, expected 0 to 10" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_a_decoder_beside_labels_has_inputs_of_its_own() -> None:
    latents = InputInfo("latents", (1, *SHAPE[1:]), "float32", "latents")
    pixels = OutputInfo("pixels", (1, 3, 8, 8), "float32")
    info = DecoderInfo("decoder.onnx", latents, pixels, None, 1, ())
    manifest = make_manifest()
    labelled = replace(
        manifest,
        rows={"class_labels": 10},
        files={**manifest.files, "decoder.onnx": FileInfo("0" * 64, 1)},
        decoder=info,
    )
    assert decoder_manifest(labelled, info).inputs == (latents,)
