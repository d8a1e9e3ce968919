"""The page as a whole: its data, its way to nobody, what isn't in it."""

import base64
import hashlib
import json
import re
from pathlib import Path

from ditc.tools.report_colours import METHODS
from ditc.tools.report_extras import read_demo
from ditc.tools.report_html import Extras
from ditc.tools.report_script import embedded

from . import reports
from .report_pages import Elements, data_of, plan_page


def test_the_page_holds_its_data(tmp_path: Path) -> None:
    data = data_of(plan_page(reports.write_plan(tmp_path)))
    assert data["sites"] == list(reports.SITES)
    assert data["spent"] == [list(row) for row in reports.SPENT]
    assert data["cells"] == [[METHODS.index(method) for method in row] for row in reports.CELLS]
    assert data["latency"] is None


def test_names_from_files_are_never_markup(tmp_path: Path) -> None:
    path = reports.write_plan(tmp_path, (reports.EVIL, "blocks.1.attn", "blocks.10.attn"))
    text = plan_page(path.rename(tmp_path / "<img src=y>.json"))
    elements = Elements(text)
    assert elements.of("img") == []
    assert elements.of("b") == [{}] * len(elements.of("b"))
    assert not [name for _, found in elements.found for name in found if name.startswith("on")]
    assert len(elements.of("script")) == 2
    assert data_of(text)["sites"][0] == reports.EVIL  # type: ignore[index]


def test_embedded_json_opens_and_closes_nothing() -> None:
    value = {"<": "</script><!--<script>&\u2028"}
    text = embedded(value)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == value


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    demo = read_demo(reports.write_demo(tmp_path / "demo"))
    text = plan_page(reports.write_plan(tmp_path), Extras(demo=demo))
    elements = Elements(text)
    for name in ("src", "href", "action", "srcset"):
        given = [found[name] for _, found in elements.found if name in found]
        assert all(value and value.startswith("data:") for value in given)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_only_the_script_of_the_page_may_run(tmp_path: Path) -> None:
    elements = Elements(plan_page(reports.write_plan(tmp_path)))
    policy = next(found["content"] for found in elements.of("meta") if "http-equiv" in found)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(elements.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:")
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_what_is_absent_is_said_and_not_drawn(tmp_path: Path) -> None:
    text = plan_page(reports.write_plan(tmp_path, searched=False))
    for words in ("Losses of candidates", "no --bench given", "no --pareto given", "no --demo"):
        assert words in text
    ids = {found.get("id") for found in Elements(text).of("section")}
    assert ids == {"plan", "buckets", "absent"}
    lanes = [found.get("data-lane") for found in Elements(text).of("div") if "data-lane" in found]
    assert lanes == ["map", "work"]
