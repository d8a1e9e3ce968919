"""Cost against loss, as drawn."""

from dataclasses import replace
from pathlib import Path

import pytest

from ditc.tools.report_data import read_facts
from ditc.tools.report_extras import read_pareto
from ditc.tools.report_html import Extras, page
from ditc.tools.report_pareto import frontier, pareto_chart, which
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


def shares(*costs: float, threshold: float | None = reports.DELTA) -> list[Point]:
    return [Point(cost, False, 0.1 + number, threshold, "") for number, cost in enumerate(costs)]


@pytest.mark.parametrize(
    ("points", "left", "here"),
    [
        (shares(0.9), None, 0),
        (shares(0.9), 0.5, 0),  # the only one of its threshold
        (shares(0.9, 0.7, 0.5), 0.7004, 1),
        (shares(0.9, 0.7, 0.5), 0.7006, None),
        (shares(0.7, 0.7003), 0.7001, None),
        (shares(0.9, 0.7), None, None),
        ([replace(point, measured=True) for point in shares(0.9, 0.7)], 0.7, None),
        ([*shares(0.7, threshold=0.1), *shares(0.7)], 0.7, 1),
        (shares(0.7, threshold=None), 0.7, None),
    ],
)
def test_one_point_at_most_is_the_plan(
    points: list[Point], left: float | None, here: int | None
) -> None:
    assert which(points, reports.DELTA, left) == here
    assert which(points, None, left) is None
    rings = [s for s in Elements(pareto_chart(points, here)).of("circle") if s["class"] == "here"]
    assert len(rings) == (here is not None)


def test_a_page_without_a_ring_does_not_speak_of_one(tmp_path: Path) -> None:
    """Both cost less than the plan leaves."""
    text = plan_page(reports.write_plan(tmp_path), Extras(points=shares(0.01, 0.02)))
    assert "The ring is this plan" not in text
    assert "this plan" not in text.partition('id="pareto"')[2].partition("</section>")[0]


def test_a_ring_around_the_plan_before_its_steps_were_merged(tmp_path: Path) -> None:
    facts = read_facts(reports.write_plan(tmp_path))
    merged = replace(facts, notes=(*facts.notes, ("steps merged", "into 2 graphs in place of 4")))
    text = page(merged, Extras(points=shares(0.9)), "0.1.0")
    assert "The ring is the plan before its steps were merged." in text
    assert "\nthe plan before its steps were merged" in text
    assert "this plan" not in text.partition('id="pareto"')[2].partition("</section>")[0]
