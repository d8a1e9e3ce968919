"""Windows named on the command line: what they are, and at which sites."""

import argparse

import pytest

from ditc.passes import Plan, TileWindow, Window
from ditc.runtime.errors import DitcError
from ditc.tools import arguments
from ditc.tools.windows import WindowChoice, parse_window, windowed, with_windows

from .samples import sample

CHOICES = {
    "band": WindowChoice(),
    "band:7": WindowChoice(radius=7),
    "block:4": WindowChoice(block=4),
    "tile:2x3": WindowChoice(tile=(2, 3), reach=(1, 1)),
    "tile:2x3:2": WindowChoice(tile=(2, 3), reach=(2, 2)),
    "tile:1x2x3:0x1x2": WindowChoice(tile=(1, 2, 3), reach=(0, 1, 2)),
}
AT_25_TOKENS = {
    "band": Window(3),
    "band:7": Window(7),
    "block:4": Window(4, 4),
    "tile:2x3": TileWindow((5, 5), (2, 3), (1, 1)),
    "tile:2x3:2": TileWindow((5, 5), (2, 3), (2, 2)),
}


@pytest.mark.parametrize("text", CHOICES)
def test_forms(text: str) -> None:
    assert parse_window(text) == CHOICES[text]


@pytest.mark.parametrize("text", ["", "tile", "tile:4", "tile:4x", "band:-1", "block:", "row:3"])
def test_unknown_forms_are_refused(text: str) -> None:
    with pytest.raises(DitcError, match="is not known: expected band, band:128"):
        parse_window(text)


@pytest.mark.parametrize("text", ["tile:0x2", "block:0", "tile:2x2:1x1x1"])
def test_sizes_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(DitcError, match="expected sizes of at least 1, and as many of reach"):
        parse_window(text)
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.window(text)


@pytest.mark.parametrize("text", AT_25_TOKENS)
def test_windows_of_sites(text: str) -> None:
    program = sample("pixart", "cond-first").program
    laid, windows = windowed(program, parse_window(text))
    able = [site.name for site in program.sites if site.eligible]
    assert windows == dict.fromkeys(able, AT_25_TOKENS[text])
    plan = with_windows(Plan.uniform(program, 2, "ast"), windows)
    plan.check(laid)
    assert plan.windows == windows


def test_no_choice_is_the_default_band() -> None:
    program = sample("pixart", "cond-first").program
    same, windows = windowed(program, None)
    assert same is program
    assert set(windows.values()) == {Window(3)}
