"""The demo model in fp16 on ONNX Runtime: the same images from half the bytes."""

from pathlib import Path

from ditc.tools.bench_precision import compare


def test_fp16_makes_the_images_of_fp32(tmp_path: Path) -> None:
    found = compare(tmp_path, "fp16", rounds=1, classes=2, max_buckets=2)
    assert 0 < found.error <= 5e-3
    assert found.ssim >= 0.98
    assert found.weight_bytes <= 0.62 * found.weight_bytes_fp32
    assert found.slot_bytes == found.slot_bytes_fp32 / 2
    assert found.time_ratio > 0
