"""What a report reads of plans and bundles, against figures made by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from ditc.passes import Plan, schedule_cost
from ditc.runtime.errors import BundleError
from ditc.runtime.manifest import Manifest
from ditc.tools.cli import main
from ditc.tools.report_data import read_facts
from ditc.tools.report_html import Extras, page
from ditc.tools.report_plan import Costs, scaled

from . import bundles, reports
from .compiled import small_bundle, small_schedule
from .report_pages import bundle_without_plan, plan_page


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
    assert facts.samples == 2
    assert " multiply-adds each, for 2 samples" in page(facts, Extras(), "0.1.0")


def test_costs_are_scaled_to_the_batch_of_the_bundle() -> None:
    costs = Costs(10, (4, 6), ((4, 6), (2, 0)))
    assert scaled(costs, (60, 36)) == (Costs(30, (12, 18), ((12, 18), (6, 0))), ())


def test_what_a_prologue_spares_the_steps_is_told_apart() -> None:
    costs = Costs(10, (4, 6), ((4, 6), (2, 0)))
    found, absent = scaled(costs, (54, 30))
    assert (found, absent) == (Costs(30, (12, 18), ((12, 18), (6, 0)), (6, 6)), ())
    assert (found.attention_left, found.model_left) == (costs.attention_left, costs.model_left)


def test_what_else_a_step_does_not_need_is_told_apart_where_the_batch_is_known() -> None:
    """As what alone makes the input of a site that returns its last output."""
    costs = Costs(10, (4, 6), ((4, 6), (2, 0)))
    found, absent = scaled(costs, (60, 32), 3)
    assert (found, absent) == (Costs(30, (12, 18), ((12, 18), (6, 0)), (0, 4)), ())
    assert found is not None
    assert found.rests == (30, 26)
    for totals in ((61, 36), (60, 5)):  # more than the plan states, and less than the sites take
        assert scaled(costs, totals, 3)[0] is None


def test_costs_that_do_not_fit_the_bundle_are_left_out() -> None:
    found, absent = scaled(Costs(10, (4, 6), ((4, 6), (2, 0))), (60, 37))
    assert found is None
    assert "don't fit" in absent[0].why


def test_a_bundle_without_a_plan_shows_what_its_manifest_holds(tmp_path: Path) -> None:
    facts = read_facts(bundle_without_plan(tmp_path / "bundle"))
    assert facts.sites == ("blocks.2.attn", "blocks.10.attn")
    assert facts.totals == (300, 100, 200, 100, 300)
    assert facts.costs is None
    text = page(facts, Extras(), "0.1.0")
    assert "the bundle holds no plan.json" in text
    assert "of attention left" not in text
    assert 'class="m0"' in text


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
    assert "bottom:-" not in page(read_facts(folder), Extras(), "0.1.0")
