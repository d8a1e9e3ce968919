"""Programs for Torch-TensorRT: what they compute, what they hold, and what is said beside them."""

import io
import json
import operator
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from ditc.export.forms import TORCH
from ditc.export.lowered import Lowered
from ditc.export.parts import part_jobs
from ditc.export.torch_network import NAMES_FILE
from ditc.export.torch_program import lower, lower_graph
from ditc.passes import Bucket, Program, Schedule, TileWindow, Window, schedule
from ditc.passes.laying_out import with_tile_layout
from ditc.passes.splitting import split_prologue
from ditc.runtime.errors import LoweringError

from . import engines
from .compiled import planned
from .samples import LAYOUTS, METHODS, sample

MARKS = (b"site-packages", b"wt/", b"tests", b".py")


def opened(lowered: Lowered) -> tuple[torch.export.ExportedProgram, dict[str, list[str]]]:
    extra = {NAMES_FILE: ""}
    exported = torch.export.load(io.BytesIO(lowered.graph), extra_files=extra)
    return exported, json.loads(extra[NAMES_FILE])


def computed(lowered: Lowered, program: Program, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what a lowered program computes, its weights bound by their names."""
    exported, names = opened(lowered)
    held = {name: source.tensor(program) for name, source in lowered.weights.items()}
    held |= lowered.constants
    assert names["inputs"][: len(given)] == list(lowered.inputs)
    assert sorted(names["inputs"][len(given) :]) == list(lowered.names)
    bound = [held[name].contiguous() for name in names["inputs"][len(given) :]]
    with torch.no_grad():
        return list(exported.module()(*given, *bound))


def check(bucket: Bucket, dtype_error: float) -> None:
    placeholders = bucket.graph_module.graph.find_nodes(op="placeholder")
    draw = torch.Generator().manual_seed(len(placeholders))
    given = []
    for node in placeholders:
        value = node.meta["val"]
        if value.is_floating_point():
            given.append(torch.randn(value.shape, generator=draw).to(value.dtype))
        else:
            given.append(torch.randint(0, 9, value.shape, generator=draw, dtype=value.dtype))
    with torch.no_grad():
        expected = bucket.graph_module(*given)
    found = computed(lower(bucket), bucket.program, given)
    assert len(found) == len(expected) == len(bucket.program.outputs) + len(bucket.writes)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).abs().max() / other.abs().max()) < dtype_error


@pytest.mark.parametrize(
    ("cfg", "window"), list(zip(LAYOUTS, (Window(3), Window(8, 4)), strict=True))
)
def test_every_method_computes_what_it_did(cfg: str, window: Window) -> None:
    program = sample("small", cfg).program
    for bucket in schedule(program, planned(program, *METHODS, window=window)).buckets:
        check(bucket, 1e-5)


def test_windows_of_tiles_and_masked_text() -> None:
    program = with_tile_layout(sample("pixart", "uncond-first").program, (2, 3))
    grid = next(site.tiles.grid for site in program.sites if site.tiles)
    window = TileWindow(grid, (2, 3), (0, 1))
    sched = schedule(program, planned(program, "full", "wa-rs+asc", window=window))
    for bucket in sched.buckets:
        check(bucket, 1e-5)


def test_half_precision() -> None:
    for bucket in engines.planned_schedule(torch.float16, 1).buckets:
        check(bucket, 4e-3)


@lru_cache
def small() -> Schedule:
    program = sample("small", "cond-first").program
    return schedule(program, planned(program, *METHODS, window=Window(3)))


def test_only_operators_of_torch_and_no_weight() -> None:
    for bucket in small().buckets:
        lowered = lower(bucket)
        exported, names = opened(lowered)
        calls = {node.target for node in exported.graph.nodes if node.op == "call_function"}
        strange = [c for c in calls if c is not operator.getitem and c.namespace != "aten"]
        assert not strange
        assert not exported.state_dict
        assert all(value.nbytes <= 1024 for value in exported.constants.values())
        sites = [site for site, method in bucket.methods.items() if str(method) != "ast"]
        assert [site for site in names["attentions"] if site] == sites * _attentions(bucket)
        assert not [mark for mark in MARKS if mark in lowered.graph]


def _attentions(bucket: Bucket) -> int:
    """How often a bucket of one site attends: a step that keeps a residual does so twice."""
    return 1 + bool(bucket.keep_residuals)


def test_equal_graphs_equal_bytes_whatever_the_weights() -> None:
    bucket = small().buckets[1]
    first = lower(bucket)
    assert lower(bucket).graph == first.graph
    other = sample("small", "cond-first").program
    values = {name: value.clone() for name, value in other.graph_module.state_dict().items()}
    with torch.no_grad():
        for value in other.graph_module.parameters():
            value.mul_(1.5)
    try:
        assert lower(replace(bucket, program=other)).graph == first.graph
    finally:
        other.graph_module.load_state_dict(values)


def test_the_prologue() -> None:
    program = split_prologue(sample("dit", "cond-first").program, 4, None)
    jobs = part_jobs(program, TORCH)
    assert [job.name for job in jobs] == ["prologue-prompt", "prologue-step", "prologue-all-steps"]
    assert {job.key for job in jobs}.isdisjoint(job.key for job in part_jobs(program))
    for job in jobs:
        exported, names = opened(job.make())
        assert len(exported.graph_signature.user_inputs) == len(names["inputs"])


def test_weights_called_as_an_input_are_told_apart() -> None:
    bucket = small().buckets[0]
    weight = lower(bucket).names[0]
    inputs = [weight, *lower(bucket).inputs[1:]]
    program = bucket.program
    lowered = lower_graph(bucket.graph_module, inputs, ["y", "z"][:1], program, "bucket b00")
    assert weight not in lowered.weights
    assert f"{weight}_weight" in lowered.weights


def test_a_graph_that_cannot_be_exported() -> None:
    bucket = small().buckets[0]
    module = torch.fx.GraphModule(dict(bucket.graph_module.named_parameters()), torch.fx.Graph())
    node = module.graph.placeholder("x")
    node.meta["val"] = torch.empty(3)
    made = module.graph.call_function(torch.ops.aten.mm.default, (node, node))
    made.meta["val"] = torch.empty(3)
    module.graph.output((made,))
    with pytest.raises(LoweringError, match=r"^bucket b7: can't be exported by torch: "):
        lower_graph(module, ["x"], ["y"], bucket.program, "bucket b7")
