"""Pages of reports and their colours taken apart, and commands that are refused."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ditc.tools.cli import main
from ditc.tools.report_data import read_facts
from ditc.tools.report_html import Extras, page

from . import bundles


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def plan_page(path: Path, extras: Extras | None = None) -> str:
    return page(read_facts(path), extras or Extras(), "0.1.0")


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str | Path) -> str:
    """Run the command, which must fail and write nothing, and return its one line."""
    out.mkdir()
    assert main(["report", *map(str, arguments), "-o", str(out / "report.html")]) == 1
    assert list(out.iterdir()) == []
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def bundle_without_plan(folder: Path) -> Path:
    """A bundle made by hand, of sites whose names sort otherwise than their numbers."""
    methods = {"full": "full", "shared": "ast", "rest": "wa-rs"}
    manifest = bundles.make_manifest()
    changed = tuple(
        replace(
            bucket,
            methods={f"blocks.{n}.attn": methods[bucket.name] for n in (10, 2)},
            multiply_adds={"full": 300, "shared": 100, "rest": 200}[bucket.name],
        )
        for bucket in manifest.buckets
    )
    folder.mkdir()
    bundles.write_bundle(folder)
    return bundles.write_manifest(folder, replace(manifest, buckets=changed))


def data_of(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Elements(text).scripts[0])
    return found


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


# Simulation of colour-vision deficiencies in linear RGB: Machado, Oliveira and Fernandes 2009.
