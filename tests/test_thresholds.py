"""How much loss each search allows at a site."""

from dataclasses import replace

import pytest

from ditc.passes import Origin
from ditc.tools.thresholds import error_limit, limits_of, threshold_of

GREEDY = Origin("greedy", 0.1, "relative", 0, 2, "0.1.0")


def test_threshold_rises_with_depth() -> None:
    found = [threshold_of(0.1, number, 4) for number in range(4)]
    assert found == pytest.approx([0.025, 0.05, 0.075, 0.1])


def test_an_error_is_too_much_from_a_half_more_than_its_share_on() -> None:
    assert error_limit(0.1, 3) == pytest.approx(0.05)


@pytest.mark.parametrize("search", ["greedy", "local", "greedy, on other weights"])
def test_limits_of_searches_site_by_site(search: str) -> None:
    limits = limits_of(replace(GREEDY, search=search), 4)
    assert limits == pytest.approx((0.025, 0.05, 0.075, 0.1))


def test_limits_of_a_search_of_all_sites_at_once() -> None:
    for search in ("ilp", "ilp, on other weights"):
        assert limits_of(replace(GREEDY, search=search), 3) == pytest.approx((0.05,) * 3)


def test_limits_of_another_search_are_not_known() -> None:
    assert limits_of(replace(GREEDY, search="mine"), 3) is None
