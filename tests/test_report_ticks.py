"""Round numbers along an axis."""

import pytest

from ditc.tools.report_ticks import round_ticks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 808e6], [0, 250e6, 500e6, 750e6, 1000e6]),
        ([0.013, 0.072], [0, 0.02, 0.04, 0.06, 0.08]),
        ([3, 1, 2], [1, 1.5, 2, 2.5, 3]),
        ([-2, 1], [-2, -1, 0, 1]),
        ([5, 5], [4.5, 4.75, 5, 5.25, 5.5]),
        ([5, 5 * (1 + 1e-15)], [4.5, 4.75, 5, 5.25, 5.5]),
        ([0, 0], [-0.1, -0.05, 0, 0.05, 0.1]),
        ([1e-14, 3e-14], [1e-14, 1.5e-14, 2e-14, 2.5e-14, 3e-14]),
    ],
)
def test_they_span_the_values(values: list[float], expected: list[float]) -> None:
    assert round_ticks(values) == pytest.approx(expected, rel=1e-12)
