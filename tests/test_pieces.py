"""Programs cut at their sites: what the pieces make, in turn, is what the program makes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ditc.passes import Plan, Program, Window, capture
from ditc.passes.counting import multiply_adds
from ditc.passes.pieces import Pieces, cut
from ditc.runtime.errors import PassError
from ditc.tools.zoo import ZOO
from ditc.tools.zoo_trial import captured

from . import models
from .samples import SAMPLES, sample

ZOO_NAMES = (
    "CogVideoXTransformer3DModel",
    "FluxTransformer2DModel",
    "Kandinsky6Transformer3DModel",  # cuts behind a chunk
    "LTX2VideoTransformer3DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
Values = dict[str, torch.Tensor]


def pieces_of(program: Program) -> Pieces:
    return cut(program, Plan.uniform(program, 1, "full").windows)


def in_turn(program: Program, pieces: Pieces) -> Values:
    """Return every value between pieces, each site's run in three."""
    values = dict(program.example)
    values.update(pieces.glue[0](values))
    for part, glue in zip(pieces.sites, pieces.glue[1:], strict=True):
        for piece in (*part.in_turn, glue):
            values.update(piece(values))
    return values


def check(program: Program) -> None:
    pieces = pieces_of(program)
    values = in_turn(program, pieces)
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(program.graph_module(*program.example.values()))
    for name, value in zip(pieces.outputs, expected, strict=True):
        assert torch.equal(values[name], value)
    for part in pieces.sites:
        for name, value in part.whole(values).items():
            assert torch.equal(value, values[name])
    parts = [*pieces.glue, *(piece for part in pieces.sites for piece in part.in_turn)]
    whole = multiply_adds(program.graph_module.graph)
    assert sum(piece.multiply_adds for piece in parts) == whole


@pytest.mark.parametrize("name", SAMPLES)
def test_pieces_in_turn_are_the_program(name: str) -> None:
    check(sample(name, "cond-first").program)


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_pieces_of_models_of_diffusers(name: str) -> None:
    tiny = next(tiny for tiny in ZOO if tiny.name == name)
    check(captured(tiny)[1])


class Gated(nn.Module):
    """Attention whose gate comes out of the same projection as query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.out, self.last = nn.Linear(8, 32), nn.Linear(8, 8), nn.Linear(8, 8)
        self.before, self.after = nn.Linear(4, 16), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = nn.functional.silu(t[:, None, None].expand(-1, 1, 4))
        shift, scale = self.before(time).chunk(2, -1)
        query, key, value, gate = (part[:, None] for part in self.joint(x + shift).chunk(4, -1))
        made = nn.functional.scaled_dot_product_attention(query, key, value) * gate.sigmoid()
        x = x + self.out(made.squeeze(1)) * scale
        return self.last(x * self.after(time))


def gated() -> Program:
    kwargs = {"x": models.noise(2, 8, 8), "t": torch.ones(2)}
    return capture(models.randomised(Gated()), kwargs, "cond-first")


def test_several_values_of_one_node_stay_together() -> None:
    program = gated()
    assert len(program.sites) == 1
    check(program)


def test_products_that_no_site_leads_to_come_first() -> None:
    pieces = pieces_of(gated())
    before, behind = pieces.glue
    assert before.multiply_adds == 2 * 4 * 16 + 2 * 4 * 8
    assert behind.multiply_adds == 2 * 8 * 8 * 8


class Leaking(Gated):
    """The gate is used again behind the site."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        query, key, value, gate = (part[:, None] for part in self.joint(x).chunk(4, -1))
        made = nn.functional.scaled_dot_product_attention(query, key, value) * gate.sigmoid()
        return self.last((x + self.out(made.squeeze(1))) * gate.squeeze(1) + t[:, None, None])


def test_what_cannot_be_cut() -> None:
    kwargs = {"x": models.noise(2, 8, 8), "t": torch.ones(2)}
    leaking = capture(models.randomised(Leaking()), kwargs, "cond-first")
    (site,) = leaking.sites
    inside = replace(site, projections=("linear",), exits=("linear_1",))
    with pytest.raises(PassError, match=r"site attention: linear_2 is used outside, and is none"):
        cut(replace(leaking, sites=(inside,)), {site.name: Window(2)})
    program = gated()
    twice = replace(program, sites=(program.sites[0], replace(program.sites[0], name="again")))
    with pytest.raises(PassError, match="sites overlap: a node belongs to two of them"):
        cut(twice, dict.fromkeys((program.sites[0].name, "again"), Window(2)))


def test_a_window_takes_what_the_entry_yields() -> None:
    model = sample("fused-qkv", "cond-first")
    pieces = pieces_of(model.program)
    values = in_turn(model.program, pieces)
    site = pieces.sites[0].site
    (found,) = pieces.sites[0].window(values).values()
    query, key, value = (values[name] for name in (site.query, site.key, site.value))
    radius = Plan.uniform(model.program, 1, "full").windows[site.name].radius
    place = torch.arange(site.tokens)
    mask = (place[:, None] - place).abs() <= radius
    scores = (query @ key.transpose(-2, -1)) * site.scale
    expected = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # fp32 sums
