"""Following the batch through whole models, also through those that go sample by sample."""

import pytest
import torch
from torch import nn

from ditc.passes import Plan, TorchSession, capture, schedule
from ditc.passes.batch_following import Followed, follow_batch
from ditc.passes.program import Program

from . import models
from .reference import Eager

BATCH = 4


def by_rows(x: torch.Tensor) -> torch.Tensor:
    """Each sample is written into its row, behind two tokens of zeros."""
    padded = x.new_zeros(len(x), 27, 16)
    for sample in range(len(x)):
        padded[sample, 2:] = x[sample]
    return padded


def by_list(x: torch.Tensor) -> torch.Tensor:
    """All samples' tokens lie behind each other, and are padded apart."""
    joined = torch.cat([torch.cat([part, part[:2]]) for part in x.unbind(0)]) * 0.5
    return nn.utils.rnn.pad_sequence(list(joined.split(27)), batch_first=True)


def by_stack(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([nn.functional.pad(part, (0, 0, 0, 2)) for part in x])


def by_swap(x: torch.Tensor) -> torch.Tensor:
    first, *others = x.unbind(0)
    return nn.functional.pad(torch.stack([*others, first]), (0, 0, 0, 2))


class Joined(nn.Module):
    """Attention over what a function makes of the samples."""

    def __init__(self, join) -> None:
        super().__init__()
        self.join = join
        self.attention = models.SdpaAttention(16, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + self.attention(self.join(x))[:, :25] * t[:, None, None]


def program_of(join) -> tuple[nn.Module, Program]:
    module = models.randomised(Joined(join))
    return module, capture(module, models.plain_kwargs(), cfg="uncond-first")


def followed(program: Program) -> Followed:
    graph = program.graph_module.graph
    (latents,) = (n for n in graph.nodes if n.name == program.latents.name)
    return follow_batch(graph, latents, BATCH)


@pytest.mark.parametrize("join", [by_rows, by_list, by_stack], ids=lambda join: join.__name__)
def test_models_that_go_sample_by_sample(join) -> None:
    module, program = program_of(join)
    site = program.sites[0]
    found = followed(program)
    assert {node.name: axis for node, axis in found.axes.items()}[site.exits[0]] == 0
    assert set(found.samples.values()) == set(range(BATCH))
    plan = Plan.uniform(program, 3, "asc")
    session = TorchSession(schedule(program, plan))
    eager = Eager(
        module,
        {site.name: site.name},
        [{name: str(method) for name, method in row.items()} for row in plan.cells],
        {site.name: (plan.windows[site.name].radius, plan.windows[site.name].block)},
        "uncond-first",
    )
    for step in range(3):
        kwargs = models.plain_kwargs(step)
        (expected,) = eager(step, **kwargs)
        assert (session(step, **kwargs) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_samples_in_other_places_hold_no_batch() -> None:
    _, program = program_of(by_swap)
    found = followed(program)
    (stack,) = (node for node in program.graph_module.graph.nodes if "stack" in node.name)
    assert stack not in found.axes
    assert "made from several samples" in str(found.lost[stack])


class Lost(nn.Module):
    """The batch is lost where tokens are merged with it, and known again behind a sum."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        mixed = x.transpose(0, 1).reshape(100, 16).tanh()
        return x * t[:, None, None] + mixed.reshape(25, 4, 16).transpose(0, 1)


def test_one_argument_tells_the_axis_of_what_another_lost() -> None:
    program = capture(Lost().eval(), models.plain_kwargs(), cfg="cond-first")
    found = followed(program)
    nodes = {node.name: node for node in program.graph_module.graph.nodes}
    assert nodes["tanh"] not in found.axes
    assert "lost among other axes" in str(found.lost[nodes["tanh"]])
    assert found.axes[nodes["add"]] == 0
