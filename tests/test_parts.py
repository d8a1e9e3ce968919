"""Prologues in bundles: weights no bucket reads, and steps that compute what they did."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.export.parts import part_jobs
from ditc.passes import TorchSession, schedule
from ditc.passes.splitting import split_prologue
from ditc.runtime import Bundle
from ditc.runtime.variants import read_manifest
from ditc.tools.bench import time_buckets, time_prologue
from ditc.tools.cli import main

from .compiled import arrays, planned, tiny_dit, workshop
from .samples import mixed, sample

STEPS = 4


@lru_cache
def compiled(name: str, layout: str, prologue: bool) -> Path:
    model = sample(name, layout)
    place = workshop() / f"parts-{name}-{layout}-{prologue}"
    sched = schedule(model.program, mixed(model, 5, steps=STEPS), 1)
    return compile_bundle(sched, place, prologue=prologue)


@pytest.mark.parametrize(("name", "layout"), [("dit", "uncond-first"), ("pixart", "cond-first")])
def test_bundles_with_and_without(name: str, layout: str) -> None:
    model = sample(name, layout)
    without, split = (
        Bundle.open(compiled(name, layout, prologue), threads=1) for prologue in (False, True)
    )
    session = TorchSession(schedule(model.program, mixed(model, 5, steps=STEPS), 1))
    for generation in range(2):  # the first run learns timesteps, the second runs all at once
        for step in range(STEPS):
            kwargs = model.kwargs(step)
            given = arrays(model.program, kwargs)
            found, expected = split.step(step, **given), without.step(step, **given)
            assert isinstance(found, np.ndarray)
            assert isinstance(expected, np.ndarray)
            assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max(), generation
            (reference,) = pytree.tree_leaves(session(step, **kwargs))
            error = np.abs(found - reference.numpy()).max() / reference.abs().max().item()
            assert error <= 1e-5


def test_weights_leave_every_bucket() -> None:
    without, split = (
        Bundle.open(compiled("pixart", "cond-first", prologue)).manifest
        for prologue in (False, True)
    )
    assert without.prologue is None
    assert split.prologue is not None
    assert split.prologue.prompt is not None
    mine = {name for part in split.prologue.parts for name in part.weights}
    read = {name for bucket in split.buckets for name in bucket.weights}
    assert {"caption_projection.linear_1.weight_transposed"} <= mine - read
    assert not any("caption_projection" in name or "attn2.to_k" in name for name in read)
    before = {name for bucket in without.buckets for name in bucket.weights}
    assert {name for name in before if not name.startswith("constant")} <= mine | read
    # captions: 4 x 7 rows of 12 x 24 and 24 x 24; keys and values of two layers of 24 x 24
    assert split.prologue.prompt.multiply_adds == 28 * (12 * 24 + 24 * 24 + 4 * 24 * 24)
    spared = without.buckets[0].multiply_adds - split.buckets[0].multiply_adds
    assert split.prologue.multiply_adds == spared


def test_no_weight_is_stored_twice() -> None:
    sizes = [
        (compiled("dit", "uncond-first", prologue) / "weights.safetensors").stat().st_size
        for prologue in (False, True)
    ]
    assert sizes[1] <= 1.02 * sizes[0]  # headers differ, and where small constants lie


def test_generation_runs_each_part_once_a_prompt(tmp_path: Path) -> None:
    model = tiny_dit()
    sched = schedule(model.program, planned(model.program, "full", "full", "full"))
    opened = {}
    for prologue in (False, True):
        place = compile_bundle(
            sched,
            tmp_path / str(prologue),
            sampler=FlowMatchEulerDiscreteScheduler(),
            prologue=prologue,
        )
        opened[prologue] = Bundle.open(place, threads=1)
    for label in (3, 5):
        made = {
            name: bundle.generate(seed=label, class_labels=np.array([label, 10]))
            for name, bundle in opened.items()
        }
        assert np.abs(made[True] - made[False]).max() <= 1e-5 * np.abs(made[False]).max()
    again = opened[True].generate(seed=5, class_labels=np.array([5, 10]))
    assert np.array_equal(again, made[True])
    runs = opened[True].feed.runs
    assert runs == {"prologue-prompt": 2, "prologue-all-steps": 2}


def test_equal_programs_give_equal_bytes(tmp_path: Path) -> None:
    model = sample("pixart", "cond-first")
    sched = schedule(model.program, mixed(model, 5, steps=STEPS), 1)
    told: list[str] = []
    again = compile_bundle(sched, tmp_path / "again", cache=tmp_path / "cache", log=told.append)
    first = compiled("pixart", "cond-first", True)
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert {line.split(":")[0] for line in told} >= {"prologue-prompt", "prologue-all-steps"}
    told.clear()
    compile_bundle(sched, tmp_path / "again", cache=tmp_path / "cache", log=told.append)
    assert all(line.endswith("found in the cache") for line in told)


def test_equal_graphs_whose_values_have_other_names_are_kept_apart() -> None:
    program = split_prologue(sample("pixart", "cond-first").program, STEPS)
    assert program.prologue is not None
    prompt = program.prologue.prompt
    assert prompt is not None
    renamed = tuple(replace(value, name=f"{value.name}_too") for value in prompt.values)
    other = replace(program.prologue, prompt=replace(prompt, values=renamed))
    first, second = (
        {job.name: job.key for job in part_jobs(made)}
        for made in (program, replace(program, prologue=other))
    )
    assert {name for name in first if first[name] != second[name]} == {"prologue-prompt"}


def test_inspect_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(compiled("pixart", "cond-first", True))]) == 0
    said = capsys.readouterr().out
    assert re.search(r"spares the steps [\d.]+ kB of weights and [\d.]+ k multiply-adds each", said)
    assert "once for a prompt: encoder_hidden_states, encoder_attention_mask to" in said
    assert "once for all steps: timestep to" in said
    assert main(["inspect", str(compiled("pixart", "cond-first", False))]) == 0
    assert "prologue   none" in capsys.readouterr().out


def test_bench_times_the_prologue(capsys: pytest.CaptureFixture[str]) -> None:
    """A round runs the prompt's part and that for all steps once, and the steps neither."""
    path = compiled("pixart", "cond-first", True)
    assert main(["bench", str(path), "--rounds", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["prologue"]["rounds_ms"]) == 3
    assert found["prologue"]["median_ms"] > 0
    counts = Counter(run.bucket for run in read_manifest(path).runs)
    steps = sum(found["buckets"][name]["median_ms"] * count for name, count in counts.items())
    assert found["generation_ms"] == pytest.approx(steps + found["prologue"]["median_ms"])
    bundle = Bundle.open(path, threads=1)
    time_buckets(bundle, 2)
    before = dict(bundle.feed.runs)
    assert before["prologue-all-steps"] == before["prologue-prompt"] == 1
    time_prologue(bundle, 5)
    assert bundle.feed.runs == {**before, "prologue-prompt": 6, "prologue-all-steps": 6}
    assert main(["bench", str(path), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("prologue ")] == ["1"]
    without = compiled("pixart", "cond-first", False)
    assert time_prologue(Bundle.open(without, threads=1), 1) is None
