"""The prologue at run time: which graphs run when, and what buckets are given."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ditc.runtime.engine import Array
from ditc.runtime.feed import Feed
from ditc.runtime.manifest import FileInfo, Manifest, OutputInfo, PartInfo, PrologueInfo

from .bundles import STEPS, arrays_for, make_manifest

PROMPT = PartInfo(
    "prompt", "p.onnx", ("class_labels",), (OutputInfo("doubled", (2,), "int64"),), 5, ()
)
STEP = PartInfo(
    "step", "s.onnx", ("timestep", "doubled"), (OutputInfo("told", (2,), "int64"),), 7, ()
)
ALL_STEPS = replace(
    STEP, name="all", graph="a.onnx", outputs=(OutputInfo("told", (STEPS, 2), "int64"),)
)


def manifest(prologue: PrologueInfo | None = None, *, sampled: bool = True) -> Manifest:
    found = make_manifest() if sampled else make_manifest(sampler=None)
    files = {**found.files, **{f"{name}.onnx": FileInfo("0" * 64, 1) for name in "psa"}}
    prologue = prologue or PrologueInfo(PROMPT, STEP, ALL_STEPS, 100, 12)
    return replace(found, prologue=prologue, files=files)


@dataclass
class Engine:
    """Doubles labels, or adds timesteps to what was doubled."""

    part: PartInfo
    seen: list[dict[str, Array]] = field(default_factory=list)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        assert tuple(arrays) == self.part.inputs
        self.seen.append({name: array.copy() for name, array in arrays.items()})
        if self.part is PROMPT:
            return {"doubled": 2 * arrays["class_labels"]}
        return {"told": arrays["timestep"] + arrays["doubled"]}


def feeding(*, sampled: bool = True) -> tuple[Feed, dict[str, Engine]]:
    engines = {part.name: Engine(part) for part in (PROMPT, STEP, ALL_STEPS)}
    return Feed(manifest(sampled=sampled), engines), engines


def given(k: int, label: int = 3, timestep: float | None = None) -> dict[str, Array]:
    times = (800, 600, 400, 200, 0)
    told = np.full(2, times[k] if timestep is None else timestep, np.int64)
    return {**arrays_for(k), "timestep": told, "class_labels": np.array([label, 9], np.int64)}


def test_known_timesteps_run_once_for_all_steps() -> None:
    feed, engines = feeding()
    for k in range(STEPS):
        found = feed(k, given(k))
        assert found["told"].tolist() == [800 - 200 * k + 6, 800 - 200 * k + 18]
        assert found["told"].flags.c_contiguous
        assert found["told"].base is not None  # a view, not a copy
    assert feed.runs == {"prompt": 1, "all": 1}
    assert engines["all"].seen[0]["timestep"].tolist() == [[t, t] for t in (800, 600, 400, 200, 0)]


def test_another_prompt_runs_anew_and_the_same_does_not() -> None:
    feed, _ = feeding()
    for label in (3, 3, 4, 3):
        found = feed(1, given(1, label))
        assert found["told"].tolist() == [600 + 2 * label, 618]
    assert feed.runs == {"prompt": 3, "all": 3}


def test_a_prompt_changed_in_place_is_seen() -> None:
    feed, _ = feeding()
    arrays = given(0)
    feed(0, arrays)
    arrays["class_labels"][0] = 7
    assert feed(0, arrays)["doubled"].tolist() == [14, 18]


def test_a_prompt_known_to_be_the_same_is_not_compared() -> None:
    feed, _ = feeding()
    feed(0, given(0))
    assert feed(1, given(1, label=5), same_prompt=True)["doubled"].tolist() == [6, 18]


def test_a_timestep_of_its_own_gets_a_run_of_its_own() -> None:
    feed, _ = feeding()
    assert feed(0, given(0))["told"].tolist() == [806, 818]
    assert feed(2, given(2, timestep=411))["told"].tolist() == [417, 429]
    assert feed.runs == {"prompt": 1, "all": 1, "step": 1}
    assert feed(3, given(3))["told"].tolist() == [206, 218]
    assert feed(2, given(2, timestep=411))["told"].tolist() == [417, 429]
    assert feed.runs == {"prompt": 1, "all": 2, "step": 1}


def test_timesteps_nobody_stated_are_learned() -> None:
    feed, _ = feeding(sampled=False)
    for _ in range(3):
        for k in range(STEPS):
            told = 500 - k
            assert feed(k, given(k, timestep=told))["told"].tolist() == [told + 6, told + 18]
    assert feed.runs == {"prompt": 1, "step": STEPS, "all": 1}


def test_a_failed_run_is_not_taken_for_done() -> None:
    feed, engines = feeding()
    feed(0, given(0))
    sound, engines["prompt"].run = engines["prompt"].run, None  # type: ignore[assignment,method-assign]
    try:
        feed(0, given(0, label=5))
    except TypeError:
        engines["prompt"].run = sound  # type: ignore[method-assign]
    assert feed(0, given(0, label=5))["doubled"].tolist() == [10, 18]


def test_parts_may_be_missing() -> None:
    alone = replace(STEP, inputs=("timestep", "class_labels"))
    found = manifest(PrologueInfo(None, alone, None, 0, 0))
    engine = Engine(alone)
    engine.run = lambda arrays: {"told": arrays["timestep"] * 2}  # type: ignore[method-assign]
    feed = Feed(found, {"step": engine})
    assert feed(0, given(0))["told"].tolist() == [1600, 1600]
    assert feed(1, given(1))["told"].tolist() == [1200, 1200]
    assert Feed(make_manifest(), {})(0, given(0)).keys() == given(0).keys()
