"""The benchmark of searches: both greedy ones find the same plan, and what each computes."""

from ditc.tools.bench_search import compare, deep_recording, quick


def test_greedy_computes_less_for_the_same_plan() -> None:
    found = compare("deep", deep_recording(layers=3), steps=3, threshold=0.1, rounds=1)
    assert found.layers == 3
    assert 0 < found.compressed < 1
    assert found.multiply_adds < 0.75  # of few layers more is behind each of them
    assert found.time > 0


def test_quick_searches_are_measured_in_generations() -> None:
    local, ilp = quick("deep", deep_recording(layers=3), steps=3, threshold=0.1, rounds=1)
    assert (local.search, ilp.search) == ("local", "ilp")
    assert 1 < local.multiply_adds < 2 < ilp.multiply_adds + 0.5 < 3
    assert local.time > 0
    assert ilp.time > 0
