"""Targets by name: a library, and the GPUs to build for."""

import pytest

from ditc.runtime.errors import LoweringError
from ditc.runtime.targets import Target, parse_target


@pytest.mark.parametrize(
    "text",
    ["onnx", "tensorrt-rtx:sm75,sm89,sm120", "tensorrt", "torch-tensorrt", "torch-tensorrt:sm89"],
)
def test_text_and_back(text: str) -> None:
    assert str(parse_target(text)) == text


def test_gpus_are_sorted_and_each_once() -> None:
    assert parse_target("tensorrt-rtx:sm120,sm89,sm120") == Target(
        "tensorrt-rtx", ("sm89", "sm120")
    )


def test_libraries() -> None:
    assert parse_target("onnx").libraries == ()
    assert parse_target("tensorrt-rtx:sm89").libraries == ("tensorrt_rtx",)
    assert parse_target("tensorrt").libraries == ("tensorrt",)
    assert parse_target("torch-tensorrt").libraries == ("tensorrt", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coreml", "'coreml' is not known: expected onnx or tensorrt-rtx or tensorrt or torch"),
        ("onnx:sm89", "'onnx:sm89': onnx takes no list of GPUs"),
        ("tensorrt:sm89", "only tensorrt-rtx and torch-tensorrt do; give 'tensorrt'"),
        ("tensorrt-rtx:", "'' is no compute capability, expected as sm89 or sm120"),
        ("tensorrt-rtx:sm89,89", "'89' is no compute capability"),
        ("tensorrt-rtx:sm8.9", "'sm8.9' is no compute capability"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(LoweringError) as caught:
        parse_target(text)
    assert message in str(caught.value)
