import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, schedule, schedule_cost
from ditc.passes.curve import Curve
from ditc.passes.merging import Merging
from ditc.runtime.errors import BundleError, DitcError
from ditc.runtime.manifest import Manifest
from ditc.tools.cli import main
from ditc.tools.report_colours import METHODS, STYLES
from ditc.tools.report_curve import curve_chart
from ditc.tools.report_data import read_facts
from ditc.tools.report_extras import read_bench, read_demo, read_pareto
from ditc.tools.report_html import Extras, page
from ditc.tools.report_lanes import least_squares
from ditc.tools.report_pareto import frontier
from ditc.tools.report_plan import Costs, scaled, titled
from ditc.tools.report_png import heat_map_png
from ditc.tools.report_points import Point
from ditc.tools.report_script import embedded
from ditc.tools.report_words import byte_size, label_parts, quantity, site_pattern

from . import bundles, reports
from .compiled import small_bundle, small_schedule

EDGES = {"bench": "--bench", "demo": "--demo", "pareto": "--pareto"}


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


def test_a_plan_tells_what_each_cell_costs(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    assert facts.sites == reports.SITES
    assert facts.methods == tuple(tuple(map(str, row)) for row in reports.CELLS)
    assert facts.totals == reports.TOTALS
    assert facts.costs is not None
    assert facts.costs.spent == reports.SPENT
    assert facts.costs.whole == 10_000 + 3 * 2400
    assert facts.costs.attention_left == sum(map(sum, reports.SPENT)) / (4 * 7200)
    assert facts.costs.model_left == sum(reports.TOTALS) / (4 * 17_200)
    assert facts.share("ast") == 3 / 12
    assert facts.samples == 2
    assert " multiply-adds each, for 2 samples" in plan_page(tmp_path / "plan.json")


def test_a_plan_tells_what_was_tried_and_how_much_was_allowed(tmp_path: Path) -> None:
    searched = read_facts(reports.write_plan(tmp_path)).searched
    assert searched is not None
    tried = (("ast", 0.5), ("wa-rs+asc", 0.25), ("wa-rs", 0.03125))
    assert searched.losses == (((), (), ()), *[(tried, tried, tried)] * 3)
    assert searched.thresholds == pytest.approx((0.1, 0.2, 0.3), rel=1e-12)
    assert searched.threshold == 0.3


def test_a_plan_on_other_weights_tells_what_its_search_allowed(tmp_path: Path) -> None:
    plan = Plan.load(reports.write_plan(tmp_path))
    assert plan.origin is not None
    elsewhere = replace(plan.origin, search=f"{plan.origin.search}, on other weights")
    replace(plan, origin=elsewhere).save(tmp_path / "elsewhere.json")
    facts = read_facts(tmp_path / "elsewhere.json")
    assert facts.searched == read_facts(tmp_path / "plan.json").searched
    assert dict(facts.notes)["found by"].startswith("greedy search on other weights, ")


def test_a_bundle_tells_the_same_as_its_schedule() -> None:
    facts = read_facts(small_bundle())
    cost = schedule_cost(small_schedule())
    assert facts.totals == cost.steps
    assert facts.buckets == ("b00", "b01", "b02", "b03")
    assert facts.costs is not None
    # Costs are scaled to the bundle's batch and rounded to whole multiply-adds.
    assert facts.costs.attention_left == pytest.approx(cost.attention_left, rel=1e-6)
    assert facts.costs.model_left == pytest.approx(cost.model_left, rel=1e-6)
    assert facts.memory is not None
    assert facts.memory.slot_bytes == small_schedule().peak_slot_bytes
    assert [entry.what for entry in facts.absent] == ["Losses of candidates"]


def test_the_curve_of_a_plan_has_a_dot_a_limit_and_a_ring_at_the_knee(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    curve = Merging(reports.make_plan()).curve()
    assert facts.curve == curve
    assert curve.buckets == 4
    shapes = Elements(curve_chart(curve, None)).of("circle")
    dots = [shape for shape in shapes if "data-tip" in shape]
    assert [str(dot["data-tip"]).split("\n")[0] for dot in dots] == [
        "1 bucket",
        *(f"{limit} buckets" for limit in (2, 3, 4)),
    ]
    assert f"{curve.slowdown(2):.2f}×" in str(dots[1]["data-tip"])
    (ring,) = [shape for shape in shapes if shape["class"] == "here"]
    assert ring["cx"] == dots[curve.knee - 1]["cx"]
    assert float(str(dots[0]["cy"])) < float(str(dots[-1]["cy"]))  # slower is higher
    assert "The ring is the knee" in plan_page(tmp_path / "plan.json")


def test_a_bundle_made_under_a_limit_keeps_the_curve(tmp_path: Path) -> None:
    program = small_schedule().program
    limited = schedule(program, small_schedule().plan, 2)
    place = compile_bundle(limited, tmp_path / "bundle")
    facts = read_facts(place)
    assert facts.curve == limited.curve
    words = "into 2 graphs in place of 4, each site to its milder method"
    assert dict(facts.notes)["steps merged"] == words
    assert "steps merged" not in dict(read_facts(small_bundle()).notes)
    text = plan_page(place)
    assert "The ring is the bundle&#x27;s own" in text or "The ring is the bundle's own" in text
    assert f"2 of 4 keep {limited.curve.kept(2):.1%}" in text if limited.curve else False
    assert 'id="buckets"' not in plan_page(small_bundle())


@pytest.mark.parametrize("costs", [(5.0, 5.0), (3.0, 2.0, 1.0), (9.0, 1e-9), (0.0, 0.0)])
def test_curves_of_all_kinds_are_drawn_inside_the_picture(costs: tuple[float, ...]) -> None:
    for shape in Elements(curve_chart(Curve(costs, 10.0), 1)).of("circle"):
        assert 0 <= float(str(shape["cx"])) <= 620
        assert 0 <= float(str(shape["cy"])) <= 300


def test_costs_are_scaled_to_the_batch_of_the_bundle() -> None:
    costs = Costs(10, (4, 6), ((4, 6), (2, 0)))
    assert scaled(costs, (60, 36)) == (Costs(30, (12, 18), ((12, 18), (6, 0))), ())


def test_what_a_prologue_spares_the_steps_is_told_apart() -> None:
    costs = Costs(10, (4, 6), ((4, 6), (2, 0)))
    found, absent = scaled(costs, (54, 30))
    assert (found, absent) == (Costs(30, (12, 18), ((12, 18), (6, 0)), 6), ())
    assert (found.attention_left, found.model_left) == (costs.attention_left, costs.model_left)


def test_costs_that_do_not_fit_the_bundle_are_left_out() -> None:
    found, absent = scaled(Costs(10, (4, 6), ((4, 6), (2, 0))), (60, 37))
    assert found is None
    assert "don't fit" in absent[0].why


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


def test_a_bundle_without_a_plan_shows_what_its_manifest_holds(tmp_path: Path) -> None:
    facts = read_facts(bundle_without_plan(tmp_path / "bundle"))
    assert facts.sites == ("blocks.2.attn", "blocks.10.attn")
    assert facts.totals == (300, 100, 200, 100, 300)
    assert facts.costs is None
    text = page(facts, Extras(), "0.1.0")
    assert "the bundle holds no plan.json" in text
    assert "of attention left" not in text
    assert 'class="m0"' in text


def test_a_bundle_needs_no_torch(tmp_path: Path) -> None:
    """Torch can't be imported in this process, as where it isn't installed."""
    out = tmp_path / "report.html"
    code = (
        "import sys; sys.modules['torch'] = None; from ditc.tools.cli import main;"
        f"sys.exit(main(['report', {str(small_bundle())!r}, '-o', {str(out)!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    text = out.read_text()
    assert "of attention left" in text
    facts = read_facts(small_bundle())
    assert facts.costs is not None
    assert data_of(text)["spent"] == [list(row) for row in facts.costs.spent]
    sites = len(data_of(text)["sites"])  # type: ignore[arg-type]
    expected = ("full", "wa-rs", "asc", "ast")
    assert data_of(text)["cells"] == [[METHODS.index(method)] * sites for method in expected]


def data_of(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Elements(text).scripts[0])
    return found


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


def test_latency_is_predicted_by_least_squares() -> None:
    assert least_squares((10, 20), (1.0, 3.0)) == (10 * 1 + 20 * 3) / (10**2 + 20**2)


def test_measured_latency_stands_beside_the_predicted(tmp_path: Path) -> None:
    medians = {"full": 30.0, "shared": 10.0, "rest": 20.0}
    path = reports.write_bench(tmp_path / "bench.json", medians)
    facts = read_facts(bundle_without_plan(tmp_path / "bundle"))
    text = page(facts, Extras(bench=read_bench(path, ["full", "shared", "rest"])), "0.1.0")
    latency = data_of(text)["latency"]
    # Medians are a tenth of the multiply-adds, so the fit is exact up to rounding.
    expected = [[m, m - 1, m + 1, m] for m in (30, 10, 20, 10, 30)]
    assert np.allclose(np.array(latency), expected, rtol=1e-12)
    assert "All steps: 100 ms" in text
    assert "0% off on average" in text


def test_the_frontier_leaves_out_what_is_beaten(tmp_path: Path) -> None:
    points = read_pareto(reports.write_json(tmp_path / "p.json", reports.POINTS))
    assert [point.cost for point in frontier(points)] == [0.7, 0.9]
    assert points[2] == Point(0.8, False, 0.3, None, "by <hand>")
    text = plan_page(reports.write_plan(tmp_path), Extras(points=points))
    assert "The ring is this plan." in text
    assert text.count('class="dot beaten"') == 1
    assert "by &lt;hand&gt;" in text


def test_points_in_one_place_are_drawn(tmp_path: Path) -> None:
    one = [{"latency_ms": 5, "loss": 0}]
    points = read_pareto(reports.write_json(tmp_path / "p.json", one))
    text = plan_page(reports.write_plan(tmp_path), Extras(points=points))
    assert "latency of a generation, ms" in text
    assert "nan" not in text


def test_figures_and_images_of_the_demo(tmp_path: Path) -> None:
    demo = read_demo(reports.write_demo(tmp_path / "demo"))
    assert ("Time an image, median", "500 ms", "400 ms") in demo.figures
    assert ("Speedup, measured", "", "1.25×") in demo.figures
    assert demo.names == ("A", "B")
    # All of image B is off by 0.2 of a range of 2: 20·log10(2 / 0.2) dB.
    assert demo.psnr_db == (float("inf"), pytest.approx(20.0, rel=1e-6))
    images = Elements(plan_page(reports.write_plan(tmp_path), Extras(demo=demo))).of("img")
    assert len(images) == 2 + 2 * 2
    source = images[0]["src"]
    assert source is not None
    raw = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(raw)))
    assert pixels.shape == (32, 32)
    assert pixels[0, 0] == 128
    assert pixels[16, 16] == 191


def test_a_demo_without_images_shows_its_figures(tmp_path: Path) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    for path in folder.glob("*.npy"):
        path.unlink()
    text = plan_page(reports.write_plan(tmp_path), Extras(demo=read_demo(folder)))
    assert "holds no images-uncompressed.npy" in text
    assert "Speedup, measured" in text


def test_a_demo_tells_distances_and_what_is_absent(tmp_path: Path) -> None:
    demo = read_demo(reports.write_demo(tmp_path / "demo"))
    assert ("Fréchet distance to drawn glyphs", "120.0", "150.1") in demo.figures
    assert ("The same of another draw of glyphs", "", "110.0") in demo.figures
    text = plan_page(reports.write_plan(tmp_path), Extras(demo=demo))
    assert "Of these distances: 2 images can&#x27;t span &lt;256&gt; features" in text
    absent = text[text.index('<section id="absent">') :]
    assert "<dt>LPIPS</dt><dd>images of &lt;32&gt; pixels are too small</dd>" in absent
    assert "Fréchet" not in absent


def test_a_demo_of_an_earlier_version_has_no_distances(tmp_path: Path) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    figures = dict(reports.FIGURES)
    for name in ("frechet", "frechet_note", "absent"):
        del figures[name]
    reports.write_json(folder / "report.json", figures)
    demo = read_demo(folder)
    assert not [row for row in demo.figures if "distance" in row[0]]
    assert [entry.what for entry in demo.absent] == ["Fréchet distance"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("frechet", {"compressed": 1.0}, "frechet.uncompressed: expected a number, found nothing"),
        ("frechet_note", 3, "frechet_note: expected a string, found a int"),
        ("absent", {"LPIPS": None}, "absent.LPIPS: expected a string, found nothing"),
        ("absent", [], "absent: expected an object, found a list"),
    ],
)
def test_figures_of_a_demo_that_do_not_hold(
    tmp_path: Path, name: str, value: object, reason: str
) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    reports.write_json(folder / "report.json", {**reports.FIGURES, name: value})
    with pytest.raises(DitcError) as caught:
        read_demo(folder)
    assert str(caught.value).endswith(reason)


def test_equal_images_have_an_infinite_ratio(tmp_path: Path) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    figures = {**reports.FIGURES, "closeness": {"psnr_db": float("inf"), "ssim": 1.0}}
    reports.write_json(folder / "report.json", figures)
    assert ("PSNR against uncompressed", "", "∞, equal") in read_demo(folder).figures


def test_the_picture_has_a_cell_for_every_step_and_site(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    image = Image.open(io.BytesIO(heat_map_png(facts))).convert("RGB")
    pixels = np.asarray(image)
    cell, top = 60, 158
    colours = {name: rgb(style.light) for name, style in STYLES.items()}
    left = int(np.argmax((pixels[top + 5] == colours["full"]).all(-1)))
    for step, row in enumerate(facts.methods):
        for number, method in enumerate(row):
            x, y = left + step * cell + 28, top + number * cell + 28
            assert tuple(pixels[y, x]) == colours[method]
    assert tuple(pixels[top + 28, left + 4 * cell + 28]) == (255, 255, 255)


def test_pictures_of_many_steps_stay_small(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    many = replace(facts, methods=facts.methods * 1000)
    assert Image.open(io.BytesIO(heat_map_png(many))).size[0] < 4500


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


# Simulation of colour-vision deficiencies in linear RGB: Machado, Oliveira and Fernandes 2009.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def seen(colour: str, vision: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the CIE L*a*b* of what an eye sees of an sRGB colour."""
    value = np.array(rgb(colour)) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(vision @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_methods_are_told_apart_by_every_eye(theme: str, vision: str) -> None:
    colours = [getattr(style, theme) for style in STYLES.values()]
    for first, second in combinations(colours, 2):
        gap = np.linalg.norm(seen(first, VISION[vision]) - seen(second, VISION[vision]))
        # About ten times the least difference that an eye notices.
        assert gap > 23


def test_the_command_writes_page_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reports.write_plan(tmp_path)
    out, png = tmp_path / "report.html", tmp_path / "plan.png"
    for _ in range(2):
        assert main(["report", str(path), "-o", str(out), "--png", str(png)]) == 0
    assert out.read_text() == plan_page(path)
    assert png.read_bytes() == heat_map_png(read_facts(path))
    assert sorted(tmp_path.iterdir()) == [path, png, out]
    assert capsys.readouterr().err == ""


def test_a_missing_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no bundle folder and no plan file" in refused(capsys, tmp_path / "o", tmp_path / "no")


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    assert "manifest.json: is missing" in refused(capsys, tmp_path / "o", tmp_path / "b")


def test_a_bundle_whose_plan_was_altered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("manifest.json", "plan.json"):
        (folder / name).write_bytes((small_bundle() / name).read_bytes())
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace("cond-first", "rest-first"))
    assert "plan.json: has the SHA-256" in refused(capsys, tmp_path / "o", folder)


@pytest.mark.parametrize("option", EDGES.values())
def test_missing_files_beside_the_plan(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small_bundle() if option == "--bench" else reports.write_plan(tmp_path)
    line = refused(capsys, tmp_path / "o", source, option, tmp_path / "none")
    assert line.startswith(f"ditc: {option} {tmp_path / 'none'}")
    assert "can't be read" in line


def test_timings_of_another_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_bench(tmp_path / "bench.json", {"b00": 1.0, "b09": 2.0})
    line = refused(capsys, tmp_path / "o", small_bundle(), "--bench", path)
    assert "times the buckets b00, b09; the bundle has b00, b01, b02, b03" in line


def test_timings_of_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_bench(tmp_path / "bench.json", {"b00": 1.0})
    line = refused(capsys, tmp_path / "o", reports.write_plan(tmp_path), "--bench", path)
    assert "a plan has no buckets to time" in line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object, found a list"),
        ({"buckets": 3}, "buckets: expected an object, found a int"),
        ({"buckets": {"b": {"low_ms": 1, "median_ms": "2"}}}, "b.median_ms: expected a number"),
        ({"buckets": {"b": {"low_ms": 1, "median_ms": -2}}}, "b.median_ms: is -2"),
    ],
)
def test_malformed_timings(value: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(DitcError, match=re.escape(words)):
        read_bench(reports.write_json(tmp_path / "bench.json", value), ["b"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "expected a list of 1 to 200 objects"),
        ([], "expected a list of 1 to 200 objects"),
        ([3], "[0]: expected an object, found a int"),
        ([{"loss": 1}], "[0]: expected either latency_ms or multiply_adds_left"),
        ([{"latency_ms": 1, "multiply_adds_left": 1, "loss": 1}], "[0]: expected either"),
        ([{"latency_ms": 1}], "[0].loss: expected a number, found nothing"),
        ([{"latency_ms": float("nan"), "loss": 1}], "[0].latency_ms: is nan"),
        ([{"latency_ms": 1, "loss": 1, "label": 5}], "[0].label: expected a string"),
        ([{"latency_ms": 1, "loss": 1}, {"multiply_adds_left": 1, "loss": 1}], "one of them"),
    ],
)
def test_malformed_pareto(
    value: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reports.write_json(tmp_path / "pareto.json", value)
    line = refused(capsys, tmp_path / "o", reports.write_plan(tmp_path), "--pareto", path)
    assert words in line


def test_pareto_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[{")
    with pytest.raises(DitcError, match="is no JSON"):
        read_pareto(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 1, 8, 8), np.float32), "expected equal ones"),
        (np.zeros((2, 4, 32, 32), np.float32), "expected float32 [samples, 1 or 3"),
        (np.zeros((2, 1, 32, 32)), "is float64"),
        (np.full((2, 1, 32, 32), np.nan, np.float32), "aren't finite"),
        (None, "images of one bundle only"),
        (b"no array", "is no array that can be read"),
    ],
)
def test_malformed_images(
    array: npt.NDArray[np.generic] | bytes | None, words: str, tmp_path: Path
) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    path = folder / "images-compressed.npy"
    if array is None:
        path.unlink()
    elif isinstance(array, bytes):
        path.write_bytes(array)
    else:
        np.save(path, array)
    with pytest.raises(DitcError, match=re.escape(words)):
        read_demo(folder)


def test_figures_that_are_missing(tmp_path: Path) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    reports.write_json(folder / "report.json", {**reports.FIGURES, "accuracy": {}})
    with pytest.raises(DitcError, match=r"accuracy\.uncompressed: expected a number"):
        read_demo(folder)


def test_a_demo_of_another_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reports.write_demo(tmp_path / "demo")
    reports.write_json(folder / "report.json", {**reports.FIGURES, "attention_left": 0.25})
    line = refused(capsys, tmp_path / "o", reports.write_plan(tmp_path), "--demo", folder)
    assert "its plan leaves 25.0% of attention, plan.json leaves 56.6%" in line


def test_unknown_methods_of_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"site 'blocks\.0\.attn': unknown method 'shared'"):
        read_facts(bundles.write_bundle(tmp_path / "bundle"))


def test_buckets_of_different_sites(tmp_path: Path) -> None:
    folder = bundle_without_plan(tmp_path / "bundle")
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    odd = replace(manifest.buckets[1], methods={"blocks.2.attn": "ast"})
    buckets = (manifest.buckets[0], odd, manifest.buckets[2])
    with pytest.raises(BundleError, match="'shared': has other sites than bucket 'full'"):
        replace(manifest, buckets=buckets)


def test_a_bundle_that_computes_nothing_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_without_plan(tmp_path / "bundle")
    manifest = Manifest.from_json((folder / "manifest.json").read_text())
    buckets = tuple(replace(bucket, multiply_adds=0) for bucket in manifest.buckets)
    bundles.write_manifest(folder, replace(manifest, buckets=buckets))
    assert main(["inspect", str(folder)]) == 0
    assert f"{'full':<6}  {0:>13}  {0:>7.1%}" in capsys.readouterr().out


def test_plans_too_large_to_draw(tmp_path: Path) -> None:
    path = reports.write_plan(tmp_path)
    record = json.loads(path.read_text())
    record["for"]["steps"] = 10_000
    record["cells"] = [record["cells"][0]] * 10_000
    record["losses"] = None
    for number in range(8):
        name = f"more.{number}"
        record["windows"][name] = {"radius": 2, "block": 1}
        record["cost"]["sites"][name] = record["cost"]["sites"][reports.SITES[0]]
    record["cells"] = [[*row, *["full"] * 8] for row in record["cells"]]
    reports.write_json(path, record)
    with pytest.raises(DitcError, match="10000 steps of 11 sites are too many to draw"):
        read_facts(path)


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = reports.write_plan(tmp_path).rename(tmp_path / "plan.html")
    out = tmp_path / "out"
    out.mkdir()
    for places, words in (
        ([out], "is a folder"),
        ([tmp_path / "none" / "r.html"], "can't be written"),
        ([path], "is read for this report"),
        ([out / "r.html", "--png", out / "r.html"], "is where the report goes"),
        ([out / "r.html", "--png", tmp_path / "none" / "r.png"], "can't be written"),
        ([out / "r.html", "--png", out / "manifest.json"], "is written as PNG: end it in .png"),
    ):
        assert main(["report", str(path), "-o", *map(str, places)]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert list(out.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [out, path]


def test_quantities_have_three_digits() -> None:
    numbers = (0, 999, 1000, 12_345, 1_234_567, 999_000_000_000, 4e15)
    expected = ["0", "999", "1.00 k", "12.3 k", "1.23 M", "999 G", "4000 T"]
    assert [quantity(number) for number in numbers] == expected
    assert byte_size(999) == "999 B"
    assert byte_size(8_759_576) == "8.76 MB"


def test_labels_are_split_where_names_differ() -> None:
    assert label_parts(["a.0.attn", "a.1.attn"])[1] == [("a.", True), ("1", False), (".attn", True)]
    assert label_parts(["a.0", "b.1"])[0] == [("a.0", False)]
    assert label_parts(["a.0.x", "a"]) == [[("a.0.x", False)], [("a", False)]]
    assert label_parts(["a.0"]) == [[("a.0", False)]]
    assert site_pattern(["a.0.attn", "a.1.attn"]) == "a.*.attn"
    assert site_pattern(["a.0", "b.1"]) is None


def test_searches_are_told_as_what_they_are() -> None:
    assert titled("greedy") == "greedy search"
    assert titled("greedy, on other weights") == "greedy search on other weights"
