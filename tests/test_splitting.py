"""Prologues: what leaves the steps, found by dependence, and steps that compute what they did."""

from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ditc.passes import Plan, Program, Prologue, TorchSession, capture, schedule, split_prologue
from ditc.passes.dependence import Level, levels

from . import models
from .reference import Eager
from .samples import LAYOUTS, STEPS, Sample, mixed, sample


class Conditioned(nn.Module):
    """Every kind of dependence, under names that tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(1, 16)
        self.c, self.d = nn.Linear(16, 32), nn.Linear(16, 16)
        self.e = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        context = self.d(torch.relu(self.a(text)).mean(dim=1))
        scale, shift = self.c(torch.sin(self.b(t[:, None]) + context).relu()).chunk(2, dim=-1)
        y = self.e(x) * (1 + scale[:, None]) + shift[:, None]
        return y * context[:, None] + torch.arange(16) / 16


def conditioned_kwargs(seed: int = 0) -> models.Kwargs:
    return {
        "x": models.noise(4, 25, 16, seed=seed),
        "t": torch.full((4,), 1 - seed / 20),
        "text": models.noise(4, 7, 12, seed=50 + seed // 3),
    }


@lru_cache
def conditioned() -> Program:
    return capture(models.randomised(Conditioned()), conditioned_kwargs(), cfg="cond-first")


def prologue_of(program: Program) -> Prologue:
    assert program.prologue is not None
    return program.prologue


def test_levels_are_those_of_what_a_value_is_made_from() -> None:
    found = {node.name: level for node, level in levels(conditioned()).items()}
    assert found["x"] is found["linear_4"] is found["add_3"] is Level.LATENTS
    assert found["t"] is found["linear_2"] is found["sin"] is found["chunk"] is Level.STEP
    assert found["text"] is found["linear"] is found["mean"] is found["d_weight"] is Level.PROMPT
    assert found["arange"] is found["div"] is Level.CONSTANT


def test_parts_and_what_they_leave() -> None:
    program = split_prologue(conditioned(), 3)
    prologue = prologue_of(program)
    assert prologue.prompt is not None
    assert prologue.step is not None
    assert program.arguments == ("x", "linear_3", "unsqueeze_3")
    assert prologue.prompt.inputs == ("text",)
    shapes = {value.name: value.shape for value in prologue.prompt.values}
    assert shapes == {"linear_1": (4, 16), "unsqueeze_3": (4, 1, 16)}
    assert prologue.step.inputs == ("t", "linear_1")
    assert [(value.name, value.shape) for value in prologue.step.values] == [("linear_3", (4, 32))]
    # a: 28 rows of 12 x 16, d: 4 of 16 x 16; b: 4 of 1 x 16, c: 4 of 16 x 32
    assert prologue.prompt.multiply_adds == 28 * 12 * 16 + 4 * 16 * 16
    assert prologue.step.multiply_adds == 4 * 16 + 4 * 16 * 32
    assert prologue.multiply_adds == 28 * 12 * 16 + 4 * 16 * 16 + 4 * 16 + 4 * 16 * 32
    assert prologue.weight_bytes == 4 * (13 * 16 + 17 * 16 + 2 * 16 + 17 * 32)
    assert prologue.stored_bytes == 4 * (2 * 4 * 16 + 3 * 4 * 32)


def test_values_are_equal_to_the_bit_and_follow_the_prompt() -> None:
    program = split_prologue(conditioned(), 8)
    plain = TorchSession(schedule(conditioned(), Plan.uniform(conditioned(), 8, "full")))
    session = TorchSession(plain.schedule.on(program))
    for step in range(8):
        kwargs = conditioned_kwargs(step)
        assert torch.equal(session(step, **kwargs), plain(step, **kwargs))
        assert torch.equal(program(**kwargs), plain(step, **kwargs))


def test_a_prompt_runs_once() -> None:
    program = split_prologue(conditioned(), 8)
    prologue = prologue_of(program)
    assert prologue.prompt is not None
    runs: list[int] = []
    module = prologue.prompt.graph_module
    handle = module.register_forward_hook(lambda *_: runs.append(1))
    feed = program.feed()
    for seed in (0, 1, 2, 3, 4, 0):
        feed(program.bind(conditioned_kwargs(seed)))
    handle.remove()
    assert len(runs) == 3  # seeds 0 to 2 have one text, 3 and 4 another


def test_what_is_kept_for_too_many_steps_stays() -> None:
    few, many = split_prologue(conditioned(), 3), split_prologue(conditioned(), 3000)
    assert prologue_of(few).step is not None
    assert prologue_of(many).step is None
    # 3000 steps of the least value on the way, 4 x 1 floats, are 48 kB and spare one operator
    assert many.arguments == ("x", "t", "linear_1")


def test_nothing_is_stored_that_is_worth_less() -> None:
    for model, steps in ((conditioned(), 3), (sample("dit", "cond-first").program, 50)):
        prologue = prologue_of(split_prologue(model, steps))
        operators = sum(
            node.op == "call_function"
            for part in prologue.parts
            for node in part.graph_module.graph.nodes
        )
        saved = prologue.weight_bytes + prologue.multiply_adds / 64 + operators * 16384
        assert prologue.stored_bytes <= saved


def test_a_program_that_has_nothing_to_hoist() -> None:
    program = sample("small", "cond-first").program
    assert split_prologue(program, 20) is program


def test_cross_attention_is_relieved_and_self_attention_whole() -> None:
    before = sample("pixart", "cond-first").program
    after = split_prologue(before, 20)
    assert [site.name for site in after.sites] == [site.name for site in before.sites]
    nodes = {node.name for node in after.graph_module.graph.nodes}
    for old, new in zip(before.sites, after.sites, strict=True):
        assert {new.query, new.key, new.value, new.attention, *new.projections, *new.exits} <= nodes
        assert len(new.projections) == (1 if new.kind == "cross" else 3)
        assert new.eligible == old.eligible
    text = {site.key for site in after.sites if site.kind == "cross"}
    assert text <= set(after.arguments)
    assert not any("to_k" in name and "attn2" in name for name in weights_of(after))


def weights_of(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph_module.graph.find_nodes(op="get_attr")]


def test_a_program_keeps_every_weight_beside_its_graph() -> None:
    before = sample("pixart", "cond-first").program
    after = split_prologue(before, 20)
    held = dict(after.graph_module.named_parameters(remove_duplicate=False))
    assert held.keys() == dict(before.graph_module.named_parameters(remove_duplicate=False)).keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_plans_on_split_programs(name: str, layout: str) -> None:
    model = sample(name, layout)
    program = split_prologue(model.program, STEPS)
    for seed in (0, 1):
        plan = mixed(model, seed)
        sched = schedule(model.program, plan)
        plain, split = TorchSession(sched), TorchSession(sched.on(program))
        eager = eager_of(model, plan)
        for step in range(STEPS):
            kwargs = model.kwargs(step)
            found, expected = split(step, **kwargs), plain(step, **kwargs)
            (reference,) = eager(step, **kwargs)
            for ours, theirs in zip(
                pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True
            ):
                assert torch.equal(ours, theirs)
                assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert split.schedule.peak_slot_bytes == plain.schedule.peak_slot_bytes


def eager_of(model: Sample, plan: Plan) -> Eager:
    cells = [{site: str(row[site]) for site in model.sites} for row in plan.cells]
    windows = {site: (window.radius, window.block) for site, window in plan.windows.items()}
    return Eager(model.module, model.paths(), cells, windows, model.program.cfg)
