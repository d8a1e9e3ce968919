"""Programs' digests: equal where graphs would be, and nowhere else."""

from pathlib import Path

import pytest

from ditc.export import compile as compile_bundle
from ditc.export.onnx import lower
from ditc.passes import capture, schedule
from ditc.passes.fingerprint import program_digest
from ditc.runtime.errors import LoweringError

from . import models
from .compiled import planned
from .samples import sample


def digest(seed: int = 0, cfg: str = "cond-first", tokens: int = 25, layers: int = 2) -> str:
    kwargs = models.plain_kwargs(tokens=tokens)
    module = models.randomised(models.fused_qkv(layers), seed)
    return program_digest(capture(module, kwargs, cfg=cfg))


def test_weights_do_not_enter_and_all_else_does() -> None:
    assert digest() == digest() == digest(seed=5)
    others = {digest(cfg="uncond-first"), digest(tokens=30), digest(layers=1), digest()}
    assert len(others) == 4


def test_a_plan_that_differs_in_one_step_builds_what_differs(tmp_path: Path) -> None:
    program = sample("small", "cond-first").program
    told: list[str] = []

    def build(*methods: str) -> list[str]:
        told.clear()
        sched = schedule(program, planned(program, *methods))
        compile_bundle(sched, tmp_path / "bundle", cache=tmp_path / "cache", log=told.append)
        return sorted(told)

    assert build("full", "asc", "ast") == ["b00: built", "b01: built", "b02: built"]
    assert build("full", "asc", "ast") == [f"b0{n}: found in the cache" for n in range(3)]
    assert build("full", "asc", "ast", "asc") == [f"b0{n}: found in the cache" for n in range(3)]
    assert build("full", "asc", "wa-rs") == [
        "b00: found in the cache",
        "b01: built",
        "b02: built",
    ]


def test_steps_that_differ_in_what_nobody_reads_share_a_graph() -> None:
    """Step 1 leaves its output for step 2, what step 0 leaves is read by nobody."""
    program = sample("small", "cond-first").program
    sched = schedule(program, planned(program, "full", "full", "ast", "asc", "asc", "ast"))
    assert [bucket.steps for bucket in sched.buckets] == [(0, 1), (2, 5), (3, 4)]
    assert [len(bucket.writes) for bucket in sched.buckets] == [1, 0, 1]


def test_equal_graphs_have_equal_bytes_whatever_their_names() -> None:
    """Of two captures, weights that differ, and buckets of other numbers."""
    first, second = (
        capture(models.randomised(models.small(), seed), models.plain_kwargs(), "cond-first")
        for seed in (0, 5)
    )
    one = schedule(first, planned(first, "full", "asc", "ast")).buckets
    other = schedule(second, planned(second, "full", "wa-rs", "asc", "ast")).buckets
    assert (one[1].name, other[2].name) == ("b01", "b02")
    assert lower(one[1]).graph == lower(other[2]).graph
    assert lower(one[2]).graph == lower(other[3]).graph
    assert lower(one[1]).graph != lower(one[2]).graph


def test_jobs_below_one(tmp_path: Path) -> None:
    program = sample("small", "cond-first").program
    with pytest.raises(LoweringError, match="jobs is -1, expected at least 1"):
        compile_bundle(schedule(program, planned(program, "full")), tmp_path / "b", jobs=-1)
