"""Equal halves: what comes before conditioning is computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import (
    Program,
    TorchSession,
    capture,
    fold_halves,
    multiply_adds,
    schedule,
    split_prologue,
)
from ditc.runtime import Bundle
from ditc.runtime.errors import CaptureError, EngineError, PassError

from . import models
from .compiled import arrays, planned
from .golden import text_of
from .samples import LAYOUTS, STEPS, mixed, sample
from .test_splitting import eager_of


def equal_halves(kwargs: models.Kwargs) -> models.Kwargs:
    latents = kwargs["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    half = latents[: len(latents) // 2]
    return {**kwargs, "hidden_states": torch.cat([half, half])}


def test_patches_are_embedded_once() -> None:
    before = sample("dit", "cond-first").program
    after = fold_halves(before)
    found = text_of(after.graph_module.graph)
    at = next(index for index, line in enumerate(found) if "conv2d" in line)
    assert found[at - 1 : at + 2] == [
        "slice_tensor = slice.Tensor(hidden_states, 0, 0, 2) [2, 3, 10, 10]",
        "conv2d = conv2d(slice_tensor, pos_embed_proj_weight, pos_embed_proj_bias, [2, 2]) "
        "[2, 24, 5, 5]",
        "cat_default = cat([conv2d, conv2d], 0) [4, 24, 5, 5]",
    ]
    assert after.folded == frozenset()
    # a half of 2 samples, 25 patches of 3 x 2 x 2, 24 wide
    assert spared(before, after) == 2 * 25 * 12 * 24


def spared(before: Program, after: Program) -> int:
    return multiply_adds(before.graph_module.graph) - multiply_adds(after.graph_module.graph)


def test_a_whole_site_is_folded_where_text_comes_later() -> None:
    before = sample("pixart", "cond-first").program
    after = fold_halves(before)
    assert after.folded == {"transformer_blocks.0.attn1"}
    # patches; four projections of 25 tokens; keys and values; the query of cross-attention
    attention = 4 * 25 * 24 * 24 + 2 * 25 * 25 * 24
    assert spared(before, after) == 2 * (25 * 12 * 24 + attention + 25 * 24 * 24)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_plans_on_folded_programs(name: str, layout: str) -> None:
    model = sample(name, layout)
    folded = fold_halves(model.program)
    both = split_prologue(folded, STEPS)
    for seed in (1, 2):
        plan = mixed(model, seed)
        sched = schedule(model.program, plan)
        plain = TorchSession(sched)
        others = [TorchSession(sched.on(folded)), TorchSession(sched.on(both))]
        eager = eager_of(model, plan)
        for step in range(STEPS):
            kwargs = equal_halves(model.kwargs(step))
            (expected,) = pytree.tree_leaves(plain(step, **kwargs))
            (reference,) = eager(step, **kwargs)
            for session in others:
                (found,) = pytree.tree_leaves(session(step, **kwargs))
                assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
                assert (found - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_slots_of_folded_sites_hold_one_half() -> None:
    model = sample("pixart", "cond-first")
    sched = schedule(model.program, planned(model.program, "full", "wa-rs+asc", "ast"))
    halved = {slot.name: slot.shape[0] for slot in sched.on(fold_halves(model.program)).slots}
    assert halved == {
        "transformer_blocks.0.attn1.output": 2,
        "transformer_blocks.1.attn1.output": 4,
        "transformer_blocks.0.attn1.residual": 2,
        "transformer_blocks.1.attn1.residual": 4,
    }


def test_unequal_halves_are_refused() -> None:
    model = sample("dit", "cond-first")
    program = fold_halves(model.program)
    with pytest.raises(CaptureError, match="argument hidden_states differs between the halves"):
        program(**model.kwargs(0))
    kwargs = equal_halves(model.kwargs(0))
    with pytest.raises(CaptureError, match="argument timestep differs between the halves"):
        program(**{**kwargs, "timestep": torch.tensor([1, 1, 1, 2])})


def test_bundles(tmp_path: Path) -> None:
    model = sample("pixart", "uncond-first")
    sched = schedule(model.program, planned(model.program, "full", "wa-rs+asc", "ast"))
    place = compile_bundle(sched, tmp_path / "bundle", fold_halves=True)
    bundle, session = Bundle.open(place, threads=1), TorchSession(sched)
    assert bundle.manifest.equal_halves
    for step in range(3):
        kwargs = equal_halves(model.kwargs(step))
        found = bundle.step(step, **arrays(model.program, kwargs))
        (expected,) = pytree.tree_leaves(session(step, **kwargs))
        assert np.abs(found - expected.numpy()).max() <= 1e-5 * expected.abs().max().item()
    with pytest.raises(EngineError) as caught:
        bundle.step(0, **arrays(model.program, model.kwargs(0)))
    assert str(caught.value) == (
        "input 'hidden_states' differs between the halves, which the bundle takes as equal: give "
        "both the same, or compile without folding halves"
    )


def test_nothing_to_fold() -> None:
    class Prompted(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return (x + text) @ (x.transpose(1, 2) + t[:, None, None])

    kwargs = {**models.plain_kwargs(), "text": models.noise(4, 25, 16)}
    program = capture(Prompted(), kwargs, cfg="cond-first")
    assert fold_halves(program) is program


def test_without_halves() -> None:
    program = capture(models.small(), models.plain_kwargs())
    with pytest.raises(PassError, match="CFG layout is None, expected both halves in one batch"):
        fold_halves(program)


def test_an_operator_that_mixes_the_batch_is_where_it_ends() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.second(y - y.flip(0)) + t[:, None, None]

    kwargs = models.plain_kwargs()
    half = models.noise(2, 25, 16, seed=9)
    kwargs["x"] = torch.cat([half, half])
    module = models.randomised(Mixing())
    before = capture(module, kwargs, cfg="cond-first")
    after = fold_halves(before)
    assert spared(before, after) == 2 * 25 * 16 * 16
    found, expected = after(**kwargs), module(**kwargs)
    assert isinstance(found, torch.Tensor)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
