"""The report in a real browser: that it renders, answers to pointer and keys, and asks nobody."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from ditc.tools.cli import main

from . import reports
from .browser import CHROMIUM, Browser
from .compiled import small_bundle

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="waits for Chromium: apt-get install chromium"
)
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(21, 23, 27)"
GROUND = "getComputedStyle(document.body).backgroundColor"


@dataclass
class Pages:
    plan: Path
    evil: Path
    bundle: Path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("pages")
    found = Pages(*(folder / f"{name}.html" for name in ("plan", "evil", "bundle")))
    demo = reports.write_demo(folder / "demo")
    pareto = reports.write_json(folder / "pareto.json", reports.POINTS)
    plan = reports.write_plan(folder)
    extras = ["--demo", str(demo), "--pareto", str(pareto)]
    assert main(["report", str(plan), "-o", str(found.plan), *extras]) == 0
    plan = reports.write_plan(folder, (reports.EVIL, *reports.SITES[1:]))
    assert main(["report", str(plan), "-o", str(found.evil)]) == 0
    medians = {"b00": 4.0, "b01": 3.0, "b02": 2.0, "b03": 1.0}
    bench = reports.write_bench(folder / "bench.json", medians)
    options = ["--bench", str(bench)]
    assert main(["report", str(small_bundle()), "-o", str(found.bundle), *options]) == 0
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(running: Browser) -> Iterator[Browser]:
    """The browser; after each test nothing was logged, and nothing but files asked for."""
    running.events.clear()
    yield running
    running.run("1")
    assert running.troubles == []
    assert all(address.startswith("file://") for address in running.requested)
    assert all(address.endswith(".html") for address in running.requested)


def tip(browser: Browser) -> str | None:
    """Return what the tooltip says, None where it is hidden."""
    script = "(() => { const t = document.getElementById('tip'); return t.hidden ? null : "
    found: str | None = browser.run(script + "t.innerText; })()")
    return found


def test_troubles_and_requests_are_noticed(running: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>console.error('x'); y()</script><img src='z.png'>")
    running.events.clear()
    running.open(page)
    running.wait(lambda: len(running.troubles) >= 2)
    assert any(address.endswith("z.png") for address in running.requested)


@pytest.mark.parametrize(("dark", "ground"), [(False, LIGHT), (True, DARK)])
def test_it_renders_in_the_readers_theme(
    dark: bool, ground: str, browser: Browser, pages: Pages, tmp_path: Path
) -> None:
    browser.open(pages.plan, dark=dark)
    assert browser.run("document.querySelector('h1').innerText") == "Tiny"
    assert browser.run(GROUND) == ground
    *_, width, height = browser.box(".map svg")
    assert width > 600
    assert height == 3 * 30
    fill = browser.run("getComputedStyle(document.querySelector('.map .m0')).fill")
    assert fill == ("rgb(238, 241, 246)" if dark else "rgb(51, 60, 77)")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_pointing_at_a_cell_shows_it(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    assert tip(browser) is None
    browser.move(".map", (1 + 0.5) / 4, (0 + 0.5) / 3)
    shown = tip(browser)
    assert shown is not None
    for words in ("step 1", "blocks.0.attn", "wa-rs window, plus the kept residual"):
        assert words in shown
    assert "wa-rs+asc\t0.2500\tover 0.1000" in shown
    assert "wa-rs\t0.03125\tunder 0.1000" in shown
    assert "1.26 k of 2.40 k multiply-adds, 52.6%" in shown
    assert browser.run("document.querySelector('#tip .used').innerText").startswith("wa-rs\t")
    browser.move(".map", (0 + 0.5) / 4, (1 + 0.5) / 3)
    shown = tip(browser)
    assert shown is not None
    assert "step 0 is never compressed" in shown
    assert "it keeps a residual for later windows" in shown
    browser.move("h1")
    assert tip(browser) is None


def test_arrow_keys_move_from_cell_to_cell(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    browser.run("document.querySelector('.map').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight"):
        browser.press(key)
    shown = tip(browser)
    assert shown is not None
    assert shown.startswith("step 2\nblocks.1.attn\nwa-rs+asc")
    for _ in range(9):
        browser.press("ArrowUp")
    shown = tip(browser)
    assert shown is not None
    assert shown.startswith("step 2\nblocks.0.attn\nast")
    browser.press("Escape")
    assert tip(browser) is None


def test_pointing_at_the_legend_shows_one_method(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    browser.move(".legend li:nth-child(5)")
    lit = "[...document.querySelectorAll('.map.dim path.lit')].map((p) => p.classList[0])"
    assert browser.run(lit) == ["m4"]
    browser.move("h1")
    assert browser.run(lit) == []


def test_pointing_at_bars_shows_steps(browser: Browser, pages: Pages) -> None:
    browser.open(pages.bundle)
    browser.move('[data-lane="work"]', 0.1)
    shown = tip(browser)
    assert shown is not None
    assert shown.startswith("step 0\n")
    assert "of an uncompressed step" in shown
    assert "rest\t" in shown
    browser.move('[data-lane="latency"]', 0.9)
    shown = tip(browser)
    assert shown is not None
    assert shown.startswith("step 3\n1.00 ms measured\nquartiles 0.00 ms … 2.00 ms\n")
    assert shown.endswith("bucket b03")


def test_pointing_at_a_plan_of_the_trade_off_shows_it(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    browser.move(".dot.beaten")
    shown = tip(browser)
    assert shown is not None
    assert shown.startswith("by <hand>\n80.0% of multiply-adds\nloss 0.3\nbeaten by")


def test_the_button_changes_the_theme(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    label = "document.getElementById('theme').innerText"
    assert (browser.run(label), browser.run(GROUND)) == ("Dark", LIGHT)
    browser.click("#theme")
    assert (browser.run(label), browser.run(GROUND)) == ("Light", DARK)
    browser.click("#theme")
    assert (browser.run(label), browser.run(GROUND)) == ("Dark", LIGHT)


def test_the_slider_moves(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    clip = "getComputedStyle(document.querySelector('.after')).clipPath"
    assert browser.run(clip) == "inset(0px 0px 0px 50%)"
    browser.click(".frame", 0.25)
    # The thumb has a width of its own, so that a click lands near the share and not on it.
    value = int(browser.run("document.querySelector('.frame input').value"))
    assert 20 <= value <= 30
    assert browser.run(clip) == f"inset(0px 0px 0px {value}%)"
    browser.press("ArrowRight")
    assert browser.run(clip) == f"inset(0px 0px 0px {value + 1}%)"


def test_images_are_chosen(browser: Browser, pages: Pages) -> None:
    browser.open(pages.plan)
    assert browser.run("document.getElementById('caption').innerText") == "image A · PSNR ∞, equal"
    browser.click(".thumbs button:nth-child(2)")
    assert browser.run("document.getElementById('caption').innerText") == "image B · PSNR 20.0 dB"
    same = (
        "document.querySelector('.frame .after').src === "
        "document.querySelectorAll('.thumbs button')[1].querySelectorAll('img')[1].src"
    )
    assert browser.run(same) is True
    pressed = "[...document.querySelectorAll('.thumbs button')].map((b) => b.ariaPressed)"
    assert browser.run(pressed) == ["false", "true"]


def test_names_from_files_stay_text(browser: Browser, pages: Pages) -> None:
    browser.open(pages.evil)
    assert browser.run("document.images.length") == 0
    browser.move(".map", 0.4, 0.1)
    shown = tip(browser)
    assert shown is not None
    assert reports.EVIL in shown
    assert browser.run("document.images.length") == 0


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_narrow_screens(width: int, browser: Browser, pages: Pages) -> None:
    for path in (pages.plan, pages.bundle, pages.evil):
        browser.open(path, width)
        assert browser.run("document.documentElement.scrollWidth") == width
    browser.open(pages.plan, width)
    browser.move(".map", 0.9, 0.9)
    left, _, wide, _ = browser.run(
        "(() => { const b = document.getElementById('tip').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    assert left >= 0
    assert left + wide <= width


BOXES = """
[...document.querySelectorAll('#pareto .label, #pareto .dot')].map(found => {
  const { x, y, width, height } = found.getBBox();
  return [found.textContent, x, y, x + width, y + height];
})
"""


def test_labels_of_crowded_plans_stay_apart(browser: Browser, tmp_path: Path) -> None:
    """Measured in the browser's own font; the plan at hand has its label whatever is near."""
    crowd = [(0.7 + 0.2 * (n / 24) ** 4, 0.3 - 0.2 * (n / 24) ** 0.5) for n in range(25)]
    points = [
        {"multiply_adds_left": cost, "loss": loss, "label": f"plan number {n}"}
        for n, (cost, loss) in enumerate(crowd)
    ]
    points[3]["threshold"] = reports.DELTA
    pareto = reports.write_json(tmp_path / "pareto.json", points)
    page = tmp_path / "page.html"
    plan = str(reports.write_plan(tmp_path))
    assert main(["report", plan, "-o", str(page), "--pareto", str(pareto)]) == 0
    browser.open(page)
    boxes = browser.run(BOXES)
    labels = {words for words, *_ in boxes if words}
    assert 3 < len(labels) < len(points)
    assert "plan number 3" in labels
    assert all(left >= 0 and right <= 620 for _, left, _, right, _ in boxes)
    for one, other in combinations(boxes, 2):
        apart = one[3] <= other[1] or other[3] <= one[1] or one[4] <= other[2] or other[4] <= one[2]
        assert apart or not (one[0] or other[0]), (one, other)
