"""What a manifest says of a prologue: there and back, and what it refuses."""

from dataclasses import replace

import pytest

from ditc.runtime.errors import BundleError
from ditc.runtime.manifest import Manifest, OutputInfo, PrologueInfo

from .test_feed import ALL_STEPS, PROMPT, STEP, manifest


def test_there_and_back() -> None:
    for prologue in (
        PrologueInfo(PROMPT, STEP, ALL_STEPS, 100, 12),
        PrologueInfo(PROMPT, None, None, 1, 2),
    ):
        found = manifest(prologue)
        assert Manifest.from_json(found.to_json()) == found


def test_graphs_values_and_bytes() -> None:
    found = manifest()
    assert [graph.name for graph in found.graphs][-3:] == ["prompt", "step", "all"]
    assert found.prologue is not None
    assert [info.name for info in found.prologue.values] == ["doubled", "told"]
    assert found.prologue.stored_bytes == 2 * 8 + 5 * 2 * 8
    assert replace(found.prologue, all_steps=None).stored_bytes == 2 * 8 + 2 * 8
    assert found.outputs_of(PROMPT) == PROMPT.outputs
    assert found.outputs_of(found.buckets[0]) == found.outputs


@pytest.mark.parametrize(
    ("prologue", "message"),
    [
        (
            PrologueInfo(replace(PROMPT, inputs=("timestep",)), STEP, None, 0, 0),
            "prologue 'prompt': inputs names 'timestep', expected one of class_labels",
        ),
        (
            PrologueInfo(None, STEP, None, 0, 0),
            "prologue 'step': inputs names 'doubled', expected one of class_labels, timestep",
        ),
        (
            PrologueInfo(PROMPT, replace(STEP, inputs=("hidden_states",)), None, 0, 0),
            "prologue 'step': inputs names 'hidden_states'",
        ),
        (
            PrologueInfo(PROMPT, STEP, replace(ALL_STEPS, outputs=STEP.outputs), 0, 0),
            "prologue 'all': its outputs aren't those of one step, 5 times each",
        ),
        (
            PrologueInfo(PROMPT, None, ALL_STEPS, 0, 0),
            "prologue 'all': its outputs aren't those of one step",
        ),
        (
            PrologueInfo(replace(PROMPT, graph="other.onnx"), STEP, None, 0, 0),
            "prologue 'prompt': its graph 'other.onnx' isn't in files",
        ),
        (
            PrologueInfo(PROMPT, replace(STEP, name="full"), None, 0, 0),
            "buckets: 2 are named 'full'",
        ),
        (
            PrologueInfo(
                replace(PROMPT, outputs=(OutputInfo("timestep", (2,), "int64"),)), None, None, 0, 0
            ),
            "inputs and slots: 2 are named 'timestep'",
        ),
    ],
)
def test_refusals(prologue: PrologueInfo, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        manifest(prologue)


def test_weights_of_a_part_need_the_store() -> None:
    prologue = PrologueInfo(replace(PROMPT, weights=("w",)), STEP, None, 0, 0)
    found = manifest(prologue)
    buckets = tuple(replace(bucket, weights=()) for bucket in found.buckets)
    files = {name: info for name, info in found.files.items() if name != "weights.safetensors"}
    with pytest.raises(BundleError, match=r"'weights\.safetensors' is missing"):
        replace(found, buckets=buckets, files=files)
