"""Timings, plans and demos that stand beside a plan: as shown, and refused where malformed."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ditc.runtime.errors import DitcError
from ditc.tools.report_extras import read_bench, read_demo, read_pareto
from ditc.tools.report_html import Extras

from . import reports
from .compiled import small_bundle
from .report_pages import Elements, plan_page, refused


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


@pytest.mark.parametrize("option", ["--bench", "--demo", "--pareto"])
def test_files_that_are_not_there(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's is report.json in its folder."""
    path = tmp_path / "none"
    source = small_bundle() if option == "--bench" else reports.write_plan(tmp_path)
    line = refused(capsys, tmp_path / "o", source, option, path)
    file = path / "report.json" if option == "--demo" else path
    assert line == f"ditc: {option} {file}: can't be read: No such file or directory\n"


def test_the_spread_names_the_worst_image(tmp_path: Path) -> None:
    text = plan_page(
        reports.write_plan(tmp_path), Extras(demo=read_demo(reports.write_demo(tmp_path / "demo")))
    )
    assert "lowest 20.0 dB, image “B”." in text


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
