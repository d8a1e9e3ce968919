"""Commands that are at fault, and a pipeline to give to others."""

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from ditc.tools.cli import main

from . import models

Capture = pytest.CaptureFixture[str]


def fails(capsys: Capture, *arguments: object) -> str:
    """Return the one line on standard error of a command that exits with 1."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("ditc: ")
    assert "Traceback" not in captured.err
    return last.removeprefix("ditc: ")


def misused(capsys: Capture, *arguments: str) -> str:
    """Return what a command says that exits with 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def pipeline() -> DiTPipeline:
    transformer = models.randomised(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            norm_num_groups=1,
            sample_size=models.SIZE,
        )
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=3)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe
