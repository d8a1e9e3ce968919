"""Pieces for half the batch: they make half of what the whole ones make."""

import pytest
import torch
from torch import nn

from ditc.passes import Program, capture
from ditc.tools.models import demo_recording
from ditc.tools.zoo import ZOO
from ditc.tools.zoo_trial import captured

from . import models
from .samples import LAYOUTS, SAMPLES, sample
from .test_pieces import in_turn, pieces_of

ZOO_NAMES = (
    "AuraFlowTransformer2DModel",  # rows of the batch made by a repeat
    "GlmImageTransformer2DModel",  # an index in front of the first site
    "HunyuanVideoTransformer3DModel",  # logic on masks
    "LatteTransformer3DModel",  # frames in the batch
    "SD3Transformer2DModel",
    "WanVACETransformer3DModel",
)


def check(program: Program) -> None:
    pieces = pieces_of(program)
    halves = pieces.halves
    assert halves is not None
    whole = in_turn(program, pieces)
    assert set(pieces.outputs) <= set(halves.axes)
    assert halves.last == (program.cfg == "cond-first")
    expected = {name: halves.half(name, value) for name, value in whole.items()}
    found = dict(expected)
    for site, glue in zip(halves.sites, halves.glue, strict=True):
        for piece in (*site, glue):
            found.update(piece(found))
    for name in halves.axes.keys() & expected.keys():
        # products over half as many rows sum in another order
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    rows = [*pieces.glue[1:], *(piece for part in pieces.sites for piece in part.in_turn)]
    halved = [*halves.glue, *(piece for site in halves.sites for piece in site)]
    whole_cost = sum(piece.multiply_adds for piece in rows)
    assert 2 * sum(piece.multiply_adds for piece in halved) == whole_cost


@pytest.mark.parametrize("cfg", LAYOUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_half_of_the_batch(name: str, cfg: str) -> None:
    check(sample(name, cfg).program)


def test_half_of_the_demo_models_batch() -> None:
    check(demo_recording(samples=3).capture())


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_half_of_models_of_diffusers(name: str) -> None:
    tiny = next(tiny for tiny in ZOO if tiny.name == name)
    check(captured(tiny)[1])


def test_no_halves_without_guidance() -> None:
    assert pieces_of(sample("dit", None).program).halves is None


class Flipped(nn.Module):
    """What comes behind the attention turns the batch round."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        query, key, value = (self.qkv(x * t[:, None, None])[:, None]).chunk(3, -1)
        made = nn.functional.scaled_dot_product_attention(query, key, value)
        return (x + self.out(made.squeeze(1))).flip(0)


class Repeated(Flipped):
    """What comes behind the attention repeats the batch: its second half is no longer the last."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(x, t).flip(0).repeat(2, 1, 1)[:2]


class Weighed(Flipped):
    """What comes behind the attention is weighed against the other samples."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = super().forward(x, t).flip(0)
        return y * y.softmax(0)


class Moved(Flipped):
    """Samples change their places by padding."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = super().forward(x, t).flip(0)
        return y + nn.functional.pad(y, (0, 0, 0, 0, 1, -1))


class LookedUp(Flipped):
    """The batch is a table that rows are looked up in."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = super().forward(x, t).flip(0)
        return y + nn.functional.embedding((y[:, :, 0] > 0).long(), x[:, 0])


class Biased(Flipped):
    """The batch is a bias."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = super().forward(x, t).flip(0)
        return y + nn.functional.linear(y, self.out.weight[:2], x[:, 0, 0]).sum(-1, keepdim=True)


@pytest.mark.parametrize("module", [Flipped, Repeated, Weighed, Moved, LookedUp, Biased])
def test_no_halves_where_the_batch_is_lost(module: type[nn.Module]) -> None:
    kwargs = {"x": models.noise(2, 8, 8), "t": torch.ones(2)}
    program = capture(models.randomised(module()), kwargs, "cond-first")
    assert pieces_of(program).halves is None


def test_a_half_goes_back_where_it_was_taken_from() -> None:
    for cfg in LAYOUTS:
        halves = pieces_of(sample("dit", cfg).program).halves
        assert halves is not None
        name = next(name for name, axis in halves.axes.items() if axis == 0)
        value = models.noise(4, 3)
        half = halves.half(name, value)
        assert torch.equal(half, value[2:] if cfg == "cond-first" else value[:2])
        assert torch.equal(halves.with_half(name, value, half), value)
        changed = halves.with_half(name, value, 2 * half)
        assert torch.equal(halves.half(name, changed), 2 * half)
        other = value[:2] if cfg == "cond-first" else value[2:]
        assert torch.equal(changed[:2] if cfg == "cond-first" else changed[2:], other)
        assert halves.with_half("whole", value, half) is half
