"""Rules between a scheduler's timesteps and what the denoiser is told."""

import pytest

from ditc.passes.told import Told, told_of


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(999.0, 999.0)], Told()),
        ([(999.0, 999.0), (500.0, 500.0)], Told()),
        ([(1000.0, 1.0)], None),  # by 0.001 as well as by 1 − t / 1000 + 1
        ([(1000.0, 1.0), (750.0, 0.75)], Told(0.001)),
        ([(1000.0, 0.0), (750.0, 0.25)], None),
        ([(1000.0, 0.0), (750.0, 0.25), (500.0, 0.5)], Told(-0.001, 1.0)),
        ([(1000.0, 0.0), (750.0, 0.25), (500.0, 0.6)], None),
        ([(1000.0, 1.0), (750.0, 0.75), (500.0, 0.4)], None),
        ([(500.0, 1.0), (500.0, 1.0), (500.0, 1.0)], None),  # the same over and over
    ],
)
def test_rules(points: list[tuple[float, float]], expected: Told | None) -> None:
    assert told_of(points) == expected


def test_a_rule_is_applied() -> None:
    assert Told(-0.001, 1.0).of(250.0) == 0.75
