"""Bundles of two calls a step: against the batch of both halves, in ONNX Runtime."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, capture, schedule
from ditc.runtime import Bundle, NullBackend
from ditc.runtime.calls import CallInfo
from ditc.runtime.errors import BundleError, EngineError
from ditc.runtime.manifest import Manifest

from .compiled import planned, tiny_dit, workshop
from .test_calls import CALLS, split

METHODS = ("full", "asc", "ast", "wa-rs", "wa-rs+asc", "ast", "full")


def kwargs() -> dict[str, object]:
    program = tiny_dit().program
    return {program.in_paths[name]: value for name, value in program.example.items()}


@lru_cache
def bundles() -> tuple[Path, Path]:
    """Return bundles of one plan: of both halves in a batch, and of two calls."""
    batch = tiny_dit().program
    cond, uncond = split(kwargs())
    program = capture(tiny_dit().module, cond, "separate", unconditional=uncond)
    plan = planned(batch, *METHODS)
    places = []
    for made in (batch, program):
        place = workshop() / f"calls-{made.cfg}"
        sampler = FlowMatchEulerDiscreteScheduler()
        places.append(compile_bundle(schedule(made, plan), place, sampler=sampler))
    return places[0], places[1]


def test_two_calls_generate_what_one_batch_does() -> None:
    batch, calls = (Bundle.open(place, threads=1) for place in bundles())
    for label in (None, 7):
        given = {} if label is None else {"class_labels": np.array([label])}
        expected = batch.generate(seed=3, guidance_scale=2.5, **given)
        found = calls.generate(seed=3, guidance_scale=2.5, **given)
        assert found.shape == expected.shape == (1, 3, 10, 10)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    changed = calls.generate(seed=3, guidance_scale=2.5, negative={"class_labels": np.array([2])})
    assert np.abs(changed - expected).max() > 1e-3
    with pytest.raises(EngineError, match="unknown negative conditioning 'labels'"):
        calls.generate(negative={"labels": np.array([2])})


def test_calls_are_stepped_in_order() -> None:
    bundle = Bundle.open(bundles()[1], threads=1)
    arrays = {name: value.numpy() for name, value in split(kwargs())[0].items()}
    arrays = {info.name: arrays[info.name] for info in bundle.manifest.inputs}
    first = bundle.step(0, "cond", **arrays)
    np.testing.assert_array_equal(bundle.step(0, "uncond", **arrays), first)
    with pytest.raises(EngineError, match=r"^step 0 has no call '', expected 'cond' and then"):
        bundle.step(0, **arrays)
    with pytest.raises(EngineError, match=r"^step 1, unconditional call reads slot .*@cond' as "):
        bundle.step(1, "uncond", **arrays)
    bundle.step(1, "cond", **arrays)
    shared = bundle.step(1, "uncond", **arrays)  # of a graph that is fused in another way
    np.testing.assert_allclose(shared, bundle.step(1, "cond", **arrays), rtol=1e-3, atol=1e-5)


def test_the_manifest_says_what_each_call_runs() -> None:
    text = (bundles()[1] / "manifest.json").read_text()
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert manifest.cfg == "separate"
    assert [call.name for call in manifest.calls] == list(CALLS)
    uncond = manifest.calls[1]
    site = "transformer_blocks.0.attn1"
    assert uncond.borrowed == (
        (),
        (f"{site}.output",),
        (f"{site}.output",),
        (f"{site}.residual",),
        (f"{site}.output",),
        (f"{site}.output",),
        (),
    )
    assert set(json.loads(text)) >= {"calls", "arguments"}
    assert "calls" not in json.loads((bundles()[0] / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda calls: (), "calls: found none, expected 'cond', 'uncond' for cfg 'separate'"),
        (lambda calls: calls[::-1], "calls: found 'uncond', 'cond', expected 'cond', 'uncond'"),
        (
            lambda calls: (calls[0], replace(calls[1], buckets=calls[1].buckets[:3])),
            "calls: 'uncond' has 3 buckets and 7 lists of slots, expected 7 of each",
        ),
        (
            lambda calls: (calls[0], replace(calls[1], buckets=("no", *calls[1].buckets[1:]))),
            "calls: 'uncond' runs 'no' at step 0, which isn't its graph there",
        ),
        (
            lambda calls: (calls[0], replace(calls[1], borrowed=(("s",), *calls[1].borrowed[1:]))),
            "calls: 'uncond' borrows 's' at step 0 and doesn't read it",
        ),
        (
            lambda calls: (calls[0], replace(calls[1], borrowed=((),) * 7)),
            "step 3, unconditional call: uses slot '.*residual@uncond', which isn't among",
        ),
    ],
)
def test_calls_that_contradict_each_other(change, message: str) -> None:
    manifest = Manifest.from_json((bundles()[1] / "manifest.json").read_text())
    with pytest.raises(BundleError, match=message):
        replace(manifest, calls=change(manifest.calls))


def test_calls_are_read_strictly() -> None:
    with pytest.raises(BundleError, match=r"calls\[0\]: the field 'borrowed' is missing"):
        CallInfo.from_json({"name": "cond", "buckets": []}, "calls[0]")


class Fixed(NullBackend):
    """Loads engines that can't be bound anew."""

    def load(self, root, manifest, weights):
        return {name: FixedEngine() for name in super().load(root, manifest, weights)}


class FixedEngine:
    def run(self, arrays): ...


def test_engines_that_cannot_change_slots_are_refused() -> None:
    with pytest.raises(EngineError, match="can't change slots between the two calls of a step"):
        Bundle.open(bundles()[1], backend=Fixed())
    assert Bundle.open(bundles()[0], backend=Fixed()).steps == 7


def test_a_graph_for_one_call_only_is_never_bound_anew() -> None:
    program = capture(
        tiny_dit().module, split(kwargs())[0], "separate", unconditional=split(kwargs())[1]
    )
    sched = schedule(program, Plan.uniform(program, 1, "full"))
    place = compile_bundle(sched, workshop() / "calls-full")
    assert Bundle.open(place, backend=Fixed()).manifest.slots == ()
    assert torch.equal(program.example["timestep"], program.unconditional["timestep"])
