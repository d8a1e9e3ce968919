"""Fused guidance: one output, the scale an input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, TorchSession, capture, fuse_guidance, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import EngineError, PassError

from . import models
from .compiled import planned, tiny_dit
from .golden import changes
from .samples import LAYOUTS, mixed, sample

GOLDEN = """\
+ guidance_scale = input []
+ slice_tensor = slice.Tensor(add_2, 0, 0, 2) [2, 25, 16]
+ slice_tensor_1 = slice.Tensor(add_2, 0, 2, 4) [2, 25, 16]
+ sub_tensor = sub.Tensor(slice_tensor, slice_tensor_1) [2, 25, 16]
+ mul_tensor = mul.Tensor(sub_tensor, guidance_scale) [2, 25, 16]
+ add_tensor = add.Tensor(slice_tensor_1, mul_tensor) [2, 25, 16]
- return [add_2]
+ return [add_tensor]"""


def test_golden_graph() -> None:
    before = sample("small", "cond-first").program
    after = fuse_guidance(before)
    assert changes(before.graph_module.graph, after.graph_module.graph) == GOLDEN
    assert after.arguments == ("x", "t", "guidance_scale")
    assert after.outputs == before.outputs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dit", "pixart", "fused-qkv"])
def test_output_is_guided(name: str, layout: str) -> None:
    model = sample(name, layout)
    sched = schedule(model.program, mixed(model, 2, steps=4))
    plain, fused = TorchSession(sched), TorchSession(sched.on(fuse_guidance(model.program)))
    for step in range(4):
        kwargs, scale = model.kwargs(step), 1.5 * step
        whole = pytree.tree_leaves(plain(step, **kwargs))[0].numpy()
        found = fused(step, **kwargs, guidance_scale=torch.tensor(scale))
        assert isinstance(found, torch.Tensor)
        first, second = np.split(whole, 2)
        c, u = (first, second) if layout == "cond-first" else (second, first)
        width = 3 if name == "pixart" else c.shape[1]  # what is behind predicts a variance
        expected = np.concatenate([u[:, :width] + scale * (c - u)[:, :width], c[:, width:]], 1)
        assert np.abs(found.numpy() - expected).max() <= 1e-6 * np.abs(expected).max() * (1 + scale)


def test_bundles_that_guide_themselves(tmp_path: Path) -> None:
    program = tiny_dit().program
    sched = schedule(program, planned(program, "full", "ast", "full"))
    opened = {
        fused: Bundle.open(
            compile_bundle(
                sched,
                tmp_path / str(fused),
                sampler=FlowMatchEulerDiscreteScheduler(),
                fuse_guidance=fused,
            ),
            threads=1,
        )
        for fused in (False, True)
    }
    for scale in (None, 1.0, 7.5):
        made = [
            opened[fused].generate(seed=3, guidance_scale=scale, class_labels=np.array([4, 10]))
            for fused in (False, True)
        ]
        assert np.abs(made[0] - made[1]).max() <= 1e-5 * np.abs(made[0]).max()
    given = {"hidden_states": np.ones((2, 3, 10, 10), np.float32), "timestep": np.full(2, 5.0)}
    given["class_labels"] = np.array([4, 10])
    out = opened[True].step(0, **given, guidance_scale=2.0)
    assert isinstance(out, np.ndarray)
    assert out.shape == (1, 3, 10, 10)
    with pytest.raises(EngineError, match="input 'guidance_scale' is missing"):
        opened[True].step(0, **given)


def program_of(cfg: str | None) -> Program:
    kwargs = models.plain_kwargs()
    return capture(models.small(), kwargs, cfg=cfg)


def test_without_halves() -> None:
    with pytest.raises(PassError, match="CFG layout is None, expected both halves in one batch"):
        fuse_guidance(program_of(None))


def test_an_output_unlike_the_latents() -> None:
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=1) + t[:, None]

    program = capture(Pooled(), models.plain_kwargs(), cfg="cond-first")
    with pytest.raises(PassError, match=r"first output is \[4, 16\], expected \[4, 25, 16\] like"):
        fuse_guidance(program)


def test_a_model_that_has_a_scale_of_its_own() -> None:
    program = fuse_guidance(program_of("cond-first"))
    with pytest.raises(PassError, match="the model has an argument guidance_scale"):
        fuse_guidance(program)
    assert Plan.uniform(program, 2, "full").sites
