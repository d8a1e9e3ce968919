"""The curve of buckets, as drawn."""

from pathlib import Path

import pytest

from ditc.export import compile as compile_bundle
from ditc.passes import schedule
from ditc.passes.curve import Curve
from ditc.passes.merging import Merging
from ditc.tools.report_curve import curve_chart
from ditc.tools.report_data import read_facts

from . import reports
from .compiled import small_bundle, small_schedule
from .report_pages import Elements, plan_page


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
    assert limited.curve is not None
    assert f"The ring is the bundle's own: 2 of 4 keep {limited.curve.kept(2):.1%}" in text
    assert 'id="buckets"' not in plan_page(small_bundle())


@pytest.mark.parametrize("costs", [(5.0, 5.0), (3.0, 2.0, 1.0), (9.0, 1e-9), (0.0, 0.0)])
def test_curves_of_all_kinds_are_drawn_inside_the_picture(costs: tuple[float, ...]) -> None:
    for shape in Elements(curve_chart(Curve(costs, 10.0), 1)).of("circle"):
        assert 0 <= float(str(shape["cx"])) <= 620
        assert 0 <= float(str(shape["cy"])) <= 300
