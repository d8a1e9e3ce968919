"""What a pipeline raises when it is called."""

import pytest

from ditc.runtime.errors import CaptureError, DitcError
from ditc.tools.calling import OUT_OF_MEMORY, calling


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (IndexError("index out of range\nin self"), "Pipe raised IndexError: index out of range"),
        (AssertionError(), "Pipe raised AssertionError: AssertionError"),
        (TypeError("no prompt"), r"Pipe refuses its arguments \(no prompt\): give them with"),
    ],
)
def test_errors_are_told_in_one_line(error: Exception, told: str) -> None:
    with pytest.raises(DitcError, match=f"^model pipe: {told}.* --call$"), calling("pipe", "Pipe"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        CaptureError("x"),
        MemoryError("x"),
        KeyboardInterrupt(),
        RuntimeError(f"[enforce fail] {OUT_OF_MEMORY}: you tried to allocate 4 bytes"),
    ],
)
def test_others_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, calling("pipe", "Pipe"):
        raise error
    assert caught.value is error
