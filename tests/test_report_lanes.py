"""What goes by step, as drawn: latency beside what is predicted."""

import re
from pathlib import Path

import numpy as np

from ditc.tools.report_data import read_facts
from ditc.tools.report_extras import read_bench
from ditc.tools.report_html import Extras, page
from ditc.tools.report_lanes import least_squares

from . import reports
from .report_pages import bundle_without_plan, data_of


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


def test_axes_are_marked_at_round_numbers_and_at_the_top(tmp_path: Path) -> None:
    """Beneath the top are no more marks where they would stand on each other's toes."""
    medians = {"full": 30.0, "shared": 10.0, "rest": 20.0}
    path = reports.write_bench(tmp_path / "bench.json", medians)  # quartiles are 1 ms apart
    facts = read_facts(bundle_without_plan(tmp_path / "bundle"))
    text = page(facts, Extras(bench=read_bench(path, ["full", "shared", "rest"])), "0.1.0")
    marks = re.findall(r'<span style="bottom:([-\d.]+)%">([^<]*)</span>', text)
    work = [(f"{100 * n / (300 * 1.06):.2f}", f"{n}") for n in (0, 100, 200, 300)]
    assert marks[:4] == work
    latency = [(0, "0"), (10, "10 ms"), (20, "20 ms"), (31, "31.0 ms")]
    assert marks[4:] == [(f"{100 * ms / (31 * 1.06):.2f}", words) for ms, words in latency]
    assert [d.count("h5") for d in re.findall(r'class="grid" d="([^"]*)"', text)] == [2, 2]
