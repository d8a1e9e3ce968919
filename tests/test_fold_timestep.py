"""fold-timestep: t → f(t)   becomes   full(t_k) → f(t_k)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import Program, TorchSession, schedule
from ditc.passes.fold_timestep import FoldTimestep
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.verify import verify_values
from ditc.runtime import Bundle
from ditc.runtime.errors import BundleError, EngineError, LoweringError, PassError

from .compiled import planned, tiny_dit
from .golden import changes, rewritten
from .samples import LAYOUTS, sample

GOLDEN = """\
+ full_default = full([4], 0.25, dtype=torch.float32, device=cpu) [4]
- unsqueeze = unsqueeze(t, 1) [4, 1]
+ unsqueeze = unsqueeze(full_default, 1) [4, 1]"""
METHODS = ("full", "wa-rs", "full", "asc", "full", "ast")
TIMESTEPS = (900.0, 700.0, 500.0, 300.0, 200.0, 100.0)


def test_golden_graph() -> None:
    program = sample("small", "cond-first").program
    module, changed = rewritten(program, FoldTimestep("t", 0.25), RemoveDeadCode())
    assert changes(program.graph_module.graph, module.graph) == GOLDEN
    assert changed == {"fold-timestep": 1, "remove-dead-code": 0}
    verify_values(module)


def test_a_second_run_changes_nothing() -> None:
    program = sample("small", "cond-first").program
    module, _ = rewritten(program, FoldTimestep("t", 0.25))
    assert FoldTimestep("t", 0.5).rewrite(module.graph) == 0


def test_graphs_that_are_told_or_take_none() -> None:
    program = sample("small", "cond-first").program
    for stage in (FoldTimestep("t", None), FoldTimestep("", 0.5), FoldTimestep("time", 0.5)):
        _, changed = rewritten(program, stage)
        assert changed == {"fold-timestep": 0}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_steps_compute_with_their_own_timestep(name: str, layout: str) -> None:
    """Buckets of one step aren't told the time, others are."""
    model = sample(name, layout)
    sched = schedule(model.program, planned(model.program, *METHODS))
    held = sched.holding(TIMESTEPS)
    assert {bucket.steps: bucket.timestep for bucket in held.buckets if bucket.timestep} == {
        bucket.steps: TIMESTEPS[bucket.steps[0]]
        for bucket in sched.buckets
        if len(bucket.steps) == 1
    }
    alone = {bucket.steps[0] for bucket in held.buckets if bucket.timestep is not None}
    assert 1 <= len(alone) < len(METHODS)
    plain, session = TorchSession(sched), TorchSession(held)
    for step, timestep in enumerate(TIMESTEPS):
        kwargs = model.kwargs(step)
        told = kwargs["timestep"]
        assert isinstance(told, torch.Tensor)
        kwargs["timestep"] = torch.full_like(told, timestep)
        expected = plain(step, **kwargs)
        kwargs["timestep"] = torch.full_like(told, 1.0 if step in alone else timestep)
        (found,), (wanted,) = (
            pytree.tree_leaves(output) for output in (session(step, **kwargs), expected)
        )
        assert torch.equal(found, wanted)


def folded(place: Path, program: Program, **options: object) -> Bundle:
    sched = schedule(program, planned(program, "full", "ast", "full", "wa-rs"))
    path = compile_bundle(
        sched,
        place,
        sampler=options.pop("sampler", FlowMatchEulerDiscreteScheduler()),
        prologue=False,
        **options,  # type: ignore[arg-type]
    )
    return Bundle.open(path, threads=1)


def test_bundles_that_hold_timesteps(tmp_path: Path) -> None:
    program = tiny_dit().program
    held, told = (
        folded(tmp_path / str(fold), program, fold_timesteps=fold) for fold in (True, False)
    )
    flags = [bucket.holds_timestep for bucket in held.manifest.buckets]
    assert flags == [len(bucket.steps) == 1 for bucket in held.manifest.buckets]
    assert any(flags)
    for bucket in held.manifest.buckets:
        operators = [
            {node.op_type for node in onnx.load(tmp_path / fold / bucket.graph).graph.node}
            for fold in ("True", "False")
        ]
        assert [("Sin" in found) for found in operators] == [not bucket.holds_timestep, True]
    made = [bundle.generate(seed=1, class_labels=np.array([4, 10])) for bundle in (held, told)]
    assert np.abs(made[0] - made[1]).max() <= 1e-6 * np.abs(made[1]).max()
    assert held.manifest.sampler is not None
    time = held.manifest.sampler.timesteps[0]
    given = {"hidden_states": np.ones((2, 3, 10, 10), np.float32), "timestep": np.full(2, time)}
    given["class_labels"] = np.array([4, 10])
    held.step(0, **given)
    given["timestep"] = given["timestep"] - 1
    with pytest.raises(
        EngineError, match=rf"step 0: timestep is {time - 1:g}, but its graph holds"
    ):
        held.step(0, **given)
    told.step(0, **given)


def test_manifests_that_contradict_themselves(tmp_path: Path) -> None:
    manifest = folded(tmp_path / "b", tiny_dit().program, fold_timesteps=True).manifest
    with pytest.raises(BundleError, match="holds a timestep, expected one step, a sampler and an"):
        replace(manifest, sampler=None)


def test_what_cant_be_folded(tmp_path: Path) -> None:
    program = tiny_dit().program
    with pytest.raises(LoweringError, match="can't be folded without a sampler"):
        folded(tmp_path / "b", program, fold_timesteps=True, sampler=None)
    with pytest.raises(LoweringError, match="into graphs that serve several batch sizes"):
        folded(tmp_path / "b", program, fold_timesteps=True, dynamic={"batch": (1, 2)})
    sched = schedule(program, planned(program, "full", "ast"))
    with pytest.raises(PassError, match="no graph of a step takes one"):
        compile_bundle(
            sched, tmp_path / "b", sampler=FlowMatchEulerDiscreteScheduler(), fold_timesteps=True
        )
    assert not list(tmp_path.iterdir())
