"""Cost against loss, as drawn."""

from pathlib import Path

from ditc.tools.report_extras import read_pareto
from ditc.tools.report_html import Extras
from ditc.tools.report_pareto import frontier, pareto_chart
from ditc.tools.report_points import Point

from . import reports
from .report_pages import Elements, plan_page


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


def test_points_that_differ_by_rounding_are_drawn(tmp_path: Path) -> None:
    """What two plans take is added up in another order; losses may be as small as they like."""
    near = [{"latency_ms": 100.1, "loss": 1e-14}, {"latency_ms": 100.10000000000001, "loss": 3e-14}]
    points = read_pareto(reports.write_json(tmp_path / "p.json", near))
    first, second = Elements(pareto_chart(points, None)).of("circle")
    assert first["cx"] == second["cx"]
    assert (first["cy"], second["cy"]) == ("254.0", "34.0")  # the bottom and the top
