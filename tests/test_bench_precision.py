"""The demo model in fp16 on ONNX Runtime: the same images from half the bytes."""

from pathlib import Path

import pytest

from ditc.tools.bench_precision import compare, main


def test_fp16_makes_the_images_of_fp32(tmp_path: Path) -> None:
    found = compare(tmp_path, "fp16", rounds=1, classes=3)
    assert 0 < found.error <= 5e-3
    assert found.ssim >= 0.98
    assert found.weight_bytes <= 0.62 * found.weight_bytes_fp32
    assert found.slot_bytes == found.slot_bytes_fp32 / 2
    assert found.time_ratio > 0


def test_bf16_is_nothing_for_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--precision", "bf16", "--rounds", "1"]) == 1
    assert "for which ONNX Runtime has no kernels" in capsys.readouterr().err
