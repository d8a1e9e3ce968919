"""What is told of errors of other libraries."""

import pytest

from ditc.runtime.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("can't be read\n\nlong advice"), "can't be read"),
        (RuntimeError("\n  shapes differ  \nat aten"), "shapes differ"),
        (OSError(), "OSError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_first_line_is_told(error: Exception, told: str) -> None:
    assert first_line(error) == told
