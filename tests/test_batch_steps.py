"""All steps in one run: values of each as if it were run alone."""

import pytest
import torch
from torch import nn

from ditc.passes import Program, capture, split_prologue
from ditc.passes.batch_steps import batched
from ditc.passes.prologue import Part
from ditc.passes.verify import verify, verify_values
from ditc.runtime.errors import PassError

from . import models
from .samples import sample
from .test_splitting import conditioned


class Layouts(nn.Module):
    """A step's part of as many layouts as there are rules."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.table = nn.Linear(8, 48), nn.Parameter(torch.empty(6, 4))
        self.norm, self.tokens = nn.LayerNorm(4), nn.Embedding(50, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = timestep.to(torch.float32)[:, None] * torch.arange(1, 9) / 100
        wide = self.wide(torch.cat([t.sin()[:, 4:], t.cos()[:, :4]], dim=-1)).unflatten(-1, (6, 8))
        first, second = wide.transpose(1, 2).split([4, 4], dim=1)
        both = torch.stack([first, second.contiguous()], dim=-1).permute(0, 2, 1, 3)
        a, b = both.chunk(2, dim=-2)
        a = self.norm(
            (a[:, :, 1] + b.select(2, 0))
            .flatten(1)
            .view(2, 6, 2)
            .expand(2, 6, 2)
            .repeat_interleave(2, -1)
        )
        c = torch.cat([self.table.expand(2, 6, 4), self.tokens(timestep % 50)[:, None]], dim=1)
        parts = (self.table + a).unbind(1)
        return self.out(x) * (parts[0] * parts[5] + c[:, 6] + c[:, 0])[:, None]


def split(program: Program, steps: int) -> Part:
    prologue = split_prologue(program, steps).prologue
    assert prologue is not None
    assert prologue.step is not None
    return prologue.step


def check(
    part: Part, given: list[dict[str, torch.Tensor]], timestep: str, tolerance: float
) -> None:
    steps = len(given)
    whole = batched(part, timestep, steps)
    verify(whole.graph_module)
    verify_values(whole.graph_module)
    assert whole.inputs == part.inputs
    assert whole.multiply_adds == steps * part.multiply_adds
    stacked = {**given[0], timestep: torch.stack([entry[timestep] for entry in given])}
    with torch.no_grad():
        found = whole.graph_module(*(stacked[name] for name in whole.inputs))
        for step, entry in enumerate(given):
            alone = part.graph_module(*(entry[name] for name in part.inputs))
            for value, all_steps, one in zip(part.values, found, alone, strict=True):
                assert all_steps.shape == (steps, *value.shape)
                assert all_steps.dtype == value.dtype
                error = (all_steps[step] - one).abs().max() / one.abs().max()
                assert error <= tolerance


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_denoisers(name: str) -> None:
    model = sample(name, "cond-first")
    part = split(model.program, 5)
    made = [
        dict(zip(part.inputs, given_of(model.program, part, seed), strict=True))
        for seed in range(5)
    ]
    check(
        part,
        [{**entry, **{n: made[0][n] for n in entry if n != "timestep"}} for entry in made],
        "timestep",
        1e-6,
    )


def given_of(program: Program, part: Part, seed: int) -> list[torch.Tensor]:
    """Return a timestep and noise in the place of the prompt's values."""
    shapes = {
        node.name: node.meta["val"] for node in part.graph_module.graph.find_nodes(op="placeholder")
    }
    return [
        torch.full(shapes[name].shape, 900 - 40 * seed, dtype=shapes[name].dtype)
        if name == "timestep"
        else models.noise(*shapes[name].shape, seed=1)
        for name in part.inputs
    ]


def test_every_layout() -> None:
    module = models.randomised(Layouts())
    kwargs = {"x": models.noise(2, 3, 4), "timestep": torch.tensor([3, 3])}
    part = split(capture(module, kwargs), 7)
    targets = {str(node.target) for node in part.graph_module.graph.nodes}
    assert {"aten.stack.default", "aten.permute.default", "aten.embedding.default"} <= targets
    given = [{"timestep": torch.tensor([3 + 6 * seed, 40 - seed])} for seed in range(7)]
    check(part, given, "timestep", 1e-6)


def test_weights_stay_what_they_are() -> None:
    part = split(conditioned(), 4)
    whole = batched(part, "t", 4)

    def linear(which: Part) -> list[str]:
        nodes = which.graph_module.graph.find_nodes(
            op="call_function", target=torch.ops.aten.linear.default
        )
        return [str(node.args[1]) for node in nodes]

    assert linear(whole) == linear(part) == ["b_weight", "c_weight"]


def test_an_operator_nobody_knows_stays_in_the_steps() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * torch.sort(t * 2)[0].exp().sin().cos()[:, None]

    program = capture(Sorted(), {"x": models.noise(4, 3), "t": torch.arange(4.0)})
    assert split_prologue(program, 4) is program


def test_a_part_that_cannot_be_batched() -> None:
    program = conditioned()
    part = Part(program.graph_module, program.arguments, (), 0)
    with pytest.raises(PassError, match=r"node mean: it isn't known how to run aten\.mean\.dim"):
        batched(part, "text", 4)
